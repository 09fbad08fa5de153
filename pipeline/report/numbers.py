"""Numbers as people read them: one precision a quantity, real minus signs, units."""

import math

from pipeline.metrics import Interval

MINUS, PLUS_MINUS, DASH = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}", "\N{EN DASH}"


def number(value: float, digits: int) -> str:
    """Return 12,345.67 with a real minus sign."""
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else text.lstrip("-")


def signed(value: float, digits: int) -> str:
    """Return +0.60 or the same with a minus sign."""
    text = number(value, digits)
    return text if text.startswith(MINUS) or not float(text.replace(",", "")) else f"+{text}"


def plus_minus(interval: Interval, *, scale: float = 1, digits: int = 3) -> str:
    """Return mean and half width of the interval; the mean alone when there is one seed."""
    mean = number(interval.mean * scale, digits)
    if math.isnan(interval.high):
        return mean
    return f"{mean} {PLUS_MINUS} {number((interval.high - interval.mean) * scale, digits)}"


def limits(interval: Interval, *, scale: float = 1, digits: int = 3) -> str:
    """Return [low, high]; nothing when there is one seed."""
    if math.isnan(interval.low):
        return ""
    return f"[{signed(interval.low * scale, digits)}, {signed(interval.high * scale, digits)}]"


def share(value: float) -> str:
    """Return a share of one in whole percent: 62 %; < 1 % and > 99 % where rounding would say none or all."""
    if 0 < value < 0.005:
        return "< 1 %"
    return "> 99 %" if 0.995 <= value < 1 else f"{value * 100:.0f} %"


def p_value(p: float) -> str:
    """Return 0.031, < 0.001, or a dash when there is none."""
    if math.isnan(p):
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: int | None) -> str:
    """Return 50,954, a dash for unknown."""
    return DASH if value is None else f"{value:,}"


def params(value: int | None) -> str:
    """Return 50,954, 86.6 M, a dash for unknown."""
    return f"{value / 1e6:,.1f} M" if value is not None and value >= 1e7 else count(value)


def span(seconds: float | None) -> str:
    """Return seconds with a unit: 0.04 s, 3.2 s, 2 min 05 s, 1.5 h; a dash for unknown."""
    if seconds is None or math.isnan(seconds):
        return DASH
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{seconds / 3600:,.1f} h"


def size(num_bytes: float) -> str:
    """Return bytes with a unit: 512 B, 48.0 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
