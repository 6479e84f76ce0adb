"""The page that a browser shows for a folder: names, sizes, dates, and links that download."""

from __future__ import annotations

import time
from html import escape
from urllib.parse import parse_qs, quote

from dav.names import Target, href, href_of, more_name, shown, shown_name
from dav.request import DavRequest, Reply
from dav.tree import Resource
from engine.paths import PathEntry

PAGE = 1000

_STYLE = """
:root{color-scheme:light dark;--line:#8883;--soft:#6b6b6b;--link:#0b63ce;--hover:#8881}
@media(prefers-color-scheme:dark){:root{--link:#7ab7ff;--soft:#9a9a9a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 3rem;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
nav{font-size:1.15rem;font-weight:600;margin-bottom:1rem;overflow-wrap:anywhere}
nav span{color:var(--soft);margin:0 .35em;font-weight:400}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
table{width:100%;border-collapse:collapse}
th{font-size:.8rem;font-weight:500;text-align:left;color:var(--soft);padding:.4rem .6rem}
td{border-top:1px solid var(--line);padding:.45rem .6rem}
tr:hover td{background:var(--hover)}
td:first-child{overflow-wrap:anywhere}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.d{white-space:nowrap;color:var(--soft);font-variant-numeric:tabular-nums}
svg{width:1.15em;height:1.15em;vertical-align:-.2em;margin-right:.55em;fill:none;
stroke:currentColor;stroke-width:1.6;stroke-linejoin:round}
.f svg{fill:#e8b23a55;stroke:#d79b16}
footer,.empty{color:var(--soft);margin-top:1.2rem;font-size:.85rem}
@media(max-width:34rem){.d{display:none}}
"""

_FOLDER = (
    '<svg viewBox="0 0 24 24"><path d="M3 6a1 1 0 0 1 1-1h5l2 2h9a1 1 0 0 1 1 1v10a1 1 0 0 1-1 '
    '1H4a1 1 0 0 1-1-1z"/></svg>'
)
_FILE = (
    '<svg viewBox="0 0 24 24"><path d="M6 3h8l4 4v13a1 1 0 0 1-1 1H6a1 1 0 0 1-1-1V4a1 1 0 0 1 '
    '1-1zM14 3v4h4"/></svg>'
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


async def list_folder(request: DavRequest, found: Resource) -> Reply:
    """Return a page of up to 1,000 entries, with a link to the next."""
    target = found.target
    after = parse_qs(request.query, keep_blank_values=True).get("after", [""])[0]
    rows: list[str] = []
    next_after: str | None = None
    if target.is_root:
        buckets, more = await request.engine.list_buckets(
            after=after, limit=PAGE, only=request.access.buckets
        )
        rows = [
            _row(bucket.name, href(bucket.name, "", folder=True), None, bucket.created_ms)
            for bucket in buckets
        ]
        next_after = buckets[-1].name if more else None
    else:
        page = await request.engine.paths.page(target.bucket, target.folder_key, after, PAGE)
        entries = [entry for entry in page.entries if entry.key != target.folder_key]
        entries.sort(key=lambda entry: not entry.is_directory)
        # A folder of long names once, whatever is in it.
        rows = list(dict.fromkeys(filter(None, (_entry_row(target, e) for e in entries))))
        next_after = page.next_after
    text = _page(target, rows, next_after, first=not after)
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", _POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-cache"),
    ]
    body = text.encode()
    if request.method == "HEAD":
        return Reply(200, [*headers, ("Content-Length", str(len(body)))])
    return Reply(200, headers, body)


def _entry_row(folder: Target, entry: PathEntry) -> str:
    """Return the row; empty for what is elsewhere (``dav.names.shown``)."""
    found = shown(folder, entry.key, is_folder=entry.is_directory, beside_folder=entry.shadowed)
    if found is None:
        return ""
    if entry.is_directory or found.more is not None or entry.version is None:
        return _row(found.name, found.href, None, None)
    return _row(found.name, found.href, entry.version.size, entry.version.modified_ms)


def _row(name: str, where: str, size: int | None, modified_ms: int | None) -> str:
    date = (
        ""
        if modified_ms is None
        else time.strftime("%Y-%m-%d %H:%M", time.gmtime(modified_ms // 1000))
    )
    is_folder = size is None
    kind, icon = ("f", _FOLDER) if is_folder else ("x", _FILE)
    shown = escape(name) + ("/" if is_folder else "")
    download = "" if is_folder else f' download="{escape(name)}"'
    exact = "" if size is None else f' title="{size:,} bytes"'
    return (
        f'<tr class="{kind}"><td><a href="{escape(where)}"{download}>{icon}{shown}</a></td>'
        f'<td class="n"{exact}>{_size(size)}</td><td class="d">{date}</td></tr>'
    )


def _size(size: int | None) -> str:
    if size is None:
        return ""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024 or unit == "TiB":
            return f"{value:.1f} {unit}"
    raise AssertionError("unreachable")


def _crumbs(target: Target) -> str:
    crumbs = ['<a href="/">Lodestore</a>']
    if target.bucket:
        crumbs.append(
            f'<a href="{escape(href(target.bucket, "", folder=True))}">{escape(target.bucket)}</a>'
        )
    whole = target.parent.path if target.more else target.path
    components = whole.split("/") if whole else []
    for count in range(1, len(components) + 1):
        path = "/".join(components[:count])
        where = href(target.bucket, path, folder=True)
        crumbs.append(f'<a href="{escape(where)}">{escape(shown_name(path))}</a>')
    if target.more:
        crumbs.append(f'<a href="{escape(href_of(target))}">{escape(more_name(target))}</a>')
    return "<span>/</span>".join(crumbs)


def _page(target: Target, rows: list[str], next_after: str | None, *, first: bool) -> str:
    title = escape(target.name or "Lodestore")
    if rows:
        table = (
            '<table><thead><tr><th>Name</th><th class="n">Size</th><th class="d">Modified (UTC)'
            f"</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )
    else:
        table = '<p class="empty">This folder is empty.</p>'
    counted = f"{len(rows):,} {'entry' if len(rows) == 1 else 'entries'}"
    more = ""
    if next_after is not None:
        more = f' · <a href="?after={escape(quote(next_after, safe=""))}">next page</a>'
    start = "" if first else ' · <a href="?">first page</a>'
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
        f"<nav>{_crumbs(target)}</nav>{table}<footer>{counted}{start}{more}</footer></body></html>"
    )
