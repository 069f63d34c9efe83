"""Quantities as people read them, in three digits."""


def duration(seconds: float) -> str:
    """Write a time: `0.12 s`, `45 s`, `3 min 20 s`, `5 h 3 min`, `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    for larger, name, smaller, below in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= larger:
            return f"{whole // larger} {name} {whole % larger // smaller} {below}"
    return f"{whole} s"


def count(n: int) -> str:
    """Write a number: `999`, `17.2 k`, `148 M`, `1.13 G`, in powers of 1000."""
    value, prefix = float(n), ""
    for larger in "kMGT":
        if value < 999.5:
            break
        value, prefix = value / 1000, f" {larger}"
    return f"{value:.3g}{prefix}"


def size(n: int) -> str:
    """Write a number of bytes: `999 B`, `17.2 kB`, `148 MB`."""
    number, _, prefix = count(n).partition(" ")
    return f"{number} {prefix}B"
