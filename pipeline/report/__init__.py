"""Reports: rows for machines, one self-contained page for people. Knows values and manifests, no recipe."""

from pipeline.report.facts import facts
from pipeline.report.page import Report, is_current, render, sources_digest
from pipeline.report.parts import (
    Cost,
    Member,
    Part,
    fusion_part,
    member_of,
    results,
    student_answers,
    student_part,
    teacher_part,
)
from pipeline.report.summary import DISHONEST, headline_text, title_of
from pipeline.report.teaching import Teaching, teaching_of

__all__ = [
    "DISHONEST",
    "Cost",
    "Member",
    "Part",
    "Report",
    "Teaching",
    "facts",
    "fusion_part",
    "headline_text",
    "is_current",
    "member_of",
    "render",
    "results",
    "sources_digest",
    "student_answers",
    "student_part",
    "teacher_part",
    "teaching_of",
    "title_of",
]
