"""The figures as tables: on the terminal, and as a page."""

import html

# A bar stands behind this column of a table.
CPU = "CPU us/request"


def heading(report):
    machine = report["machine"]
    programs = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; {programs}"


def tables(report):
    """Each table as title, columns and rows."""
    rows = []
    for label, figures in report["scenarios"].items():
        rows += rows_of(label, figures, "torus-uring")
        rows += [[label, name, f"not there: {reason}"] + ["-"] * 8
                 for name, reason in report["missing"].get(label, {}).items()]
    columns = [CPU, "of it user", "of torus-uring's", "requests/s", "p50 us", "p99 us", "p99.9 us", "resident MB", "errors"]
    yield "Scenarios", ["scenario", "proxy"] + columns, rows
    rows = [[name, f"{share} %", number(row["rate"]), number(row.get("p50_us")), number(row.get("p99_us")),
             number(row.get("p999_us")), ", ".join(row["verdicts"])]
            for name, found in report["shares"].items() for share, row in found.items()]
    yield "Latency at shares of each proxy's own highest rate (open loop, Poisson, 1 KiB)", [
        "proxy", "share", "requests/s", "p50 us", "p99 us", "p99.9 us", "verdicts"], rows
    rows = []
    for name, row in report["start"].items():
        idle, tls = (report[key].get(name, {}).get("bytes_each") for key in ("idle", "idle_tls"))
        many = report["many"].get(name, {})
        resident = many.get("resident_kb")
        rows.append([name, number(row["resident_kb"] / 1024, 1), number(row["ready_s"], 3), number(idle), number(tls),
                     number(many.get("ready_s"), 3), number(resident / 1024 if resident else None, 1)])
    yield "Memory and start", ["proxy", "resident at start MB", "ready s", "bytes/idle connection", "bytes/idle TLS connection",
                               "many clusters: ready s", "resident MB"], rows
    columns[2] = "of ring-uring's"
    rows = [row for label, figures in report["runtimes"].items() for row in rows_of(label, figures, "ring-uring")]
    yield "Runtimes: the same minimal forwarding", ["scenario", "runtime"] + columns, rows


def rows_of(label, figures, base):
    """A row for each proxy; the ratio is its CPU over that of `base`."""
    ours = figures.get(base, {}).get("cpu_us")
    for name, row in figures.items():
        yield [label, name, number(row["cpu_us"], 1), number(row["user_us"], 1),
               number(row["cpu_us"] / ours if ours else None, 2), number(row["rate"]), number(row["p50_us"]),
               number(row["p99_us"]), number(row["p999_us"]), number(row["memory_kb"] / 1024, 1), str(row["errors"])]


def print_table(title, columns, rows):
    if rows:
        print(f"### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")


def page(report):
    """The tables as one page that needs no network; a bar stands behind each CPU figure."""
    out = ["<!doctype html><html lang=en><meta charset=utf-8><title>Proxies side by side</title><style>"
           "body{font:15px system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:1em 0}"
           "td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right;font-variant-numeric:tabular-nums}"
           "td:first-child,th:first-child,.text td:nth-child(2),.text th:nth-child(2),.note{text-align:left}.note{color:#888}"
           ".text td:nth-child(2){white-space:nowrap}"
           ".first td{border-top:2px solid #999}.bar{min-width:9em;background:linear-gradient(90deg,#9cf var(--width),"
           "transparent 0)}</style><h1>Proxies side by side</h1>",
           f"<p>{html.escape(heading(report))}, {report['machine']['time']}; {html.escape(how(report))}</p>"]
    for title, columns, rows in tables(report):
        if not rows:
            continue
        head = "".join(f"<th>{html.escape(column)}" for column in columns)
        out.append(f"<h2>{html.escape(title)}</h2><table{' class=text' if CPU in columns else ''}><tr>{head}</tr>")
        highest = {}
        for row in rows if CPU in columns else []:
            if row[3] != "-":
                highest[row[0]] = max(highest.get(row[0], 0), float(row[2]))
        before = None
        for row in rows:
            cells = [f"<td>{html.escape(cell)}" for cell in row]
            if CPU in columns and row[3] == "-":
                cells = cells[:2] + [f"<td class=note colspan={len(row) - 2}>{html.escape(row[2])}"]
            elif CPU in columns:
                cells[2] = f"<td class=bar style='--width:{100 * float(row[2]) / max(highest[row[0]], 1e-9):.0f}%'>{row[2]}"
            out.append(f"<tr{' class=first' if row[0] != before else ''}>{''.join(cells)}</tr>")
            before = row[0]
        out.append("</table>")
    return "\n".join(out) + "\n"


def how(report):
    options = report["options"]
    return (f"medians of {options['repetitions']} repetitions of {options['seconds']} s, each proxy alone on one core, "
            f"its own processor time")


def number(value, digits=0):
    return "-" if value is None else f"{value:.{digits}f}"
