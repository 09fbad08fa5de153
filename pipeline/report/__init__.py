"""Reports: rows for machines, one self-contained page for people. Knows values and manifests, no recipe."""

from pipeline.report.choices import LossTable, SweepTable, ensemble_tables, listed, loss_table, sweep_table
from pipeline.report.contents import Report, Sample, Written
from pipeline.report.facts import facts
from pipeline.report.overview import Outcome, overview, render_overview
from pipeline.report.page import is_current, render, sources_digest
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
    with_figures,
    with_more,
    with_skill,
)
from pipeline.report.pictures import Grid
from pipeline.report.summary import DISHONEST, headline_text, title_of
from pipeline.report.teaching import Teaching, teaching_of
from pipeline.report.tree import Tree, tree_of

__all__ = [
    "DISHONEST",
    "Cost",
    "Grid",
    "LossTable",
    "Member",
    "Outcome",
    "Part",
    "Report",
    "Sample",
    "SweepTable",
    "Teaching",
    "Tree",
    "Written",
    "ensemble_tables",
    "facts",
    "fusion_part",
    "headline_text",
    "is_current",
    "listed",
    "loss_table",
    "member_of",
    "overview",
    "render",
    "render_overview",
    "results",
    "sources_digest",
    "student_answers",
    "student_part",
    "sweep_table",
    "teacher_part",
    "teaching_of",
    "title_of",
    "tree_of",
    "with_figures",
    "with_more",
    "with_skill",
]
