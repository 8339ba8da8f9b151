"""The rules of a comparison's page, besides those of a run's report."""

CSS = """
.verdict{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--blue);border-radius:10px;
padding:18px 22px;font-size:1.06rem;max-width:none;margin:0}
.verdict+.note{margin-top:12px}
.strips{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:8px 18px 10px;margin:0}
.strip{display:grid;grid-template-columns:minmax(0,15em) minmax(0,1fr) 12.5em;gap:0 18px;align-items:center;
padding:5px 0;border-top:1px solid var(--line)}
.strip:first-child{border-top:0}
.strip .name{font-weight:620;line-height:1.3}
.strip .name small,.strip .figure small{display:block;font-weight:400;color:var(--ink-2);font-size:.8rem}
.strip .figure{text-align:right;font-variant-numeric:tabular-nums;line-height:1.3}
.strip .figure b{font-weight:620}
.line{position:relative;height:30px}
.line i{position:absolute;top:50%;transform:translate(-50%,-50%)}
.line .range{height:3px;border-radius:2px;background:var(--key);opacity:.55;transform:translate(0,-50%)}
.line .seed{width:8px;height:8px;border-radius:50%;border:1.5px solid var(--key);background:var(--card)}
.line .middle{width:4px;height:20px;border-radius:2px;background:var(--key)}
.line .zero,.ticks .zero{position:absolute;top:0;bottom:0;width:1px;background:var(--axis)}
.line .grid{top:0;bottom:0;height:auto;width:1px;background:var(--grid);transform:none}
.axis{padding:0;border-top:1px solid var(--axis)}
.ticks{position:relative;height:22px;font-size:.78rem;color:var(--ink-2);font-variant-numeric:tabular-nums}
.ticks span{position:absolute;transform:translateX(-50%);white-space:nowrap;top:3px}
.same{--key:var(--grey)!important}
.tag{color:var(--ink-2)}.tag.yes{color:var(--blue);font-weight:620}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;margin-top:12px}
.table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums}
.table th,.table td{padding:6px 12px;text-align:right;border-top:1px solid var(--line);white-space:nowrap;overflow-wrap:normal}
.table thead th{border-top:0;color:var(--ink-2);font-weight:400;white-space:normal;min-width:5.5em;
vertical-align:bottom;line-height:1.3}
.table tbody th{text-align:left;font-weight:620}
.scroll tbody th{position:sticky;left:0;z-index:1;background:var(--card)}
.table thead th:first-child{text-align:left}
.table td.text,.texts thead th,.pairs thead th:nth-child(6){text-align:left}
.table .cell{white-space:normal;overflow-wrap:anywhere;min-width:8em;max-width:26em}
.swatch{display:inline-block;width:10px;height:10px;border-radius:3px;background:var(--key);margin-right:8px}
.matrix{border-collapse:separate;border-spacing:2px;font-size:.8rem;margin:12px 14px}
.matrix th{font-weight:400;padding:0 6px 0 0;text-align:left;white-space:nowrap;line-height:1.2}
.matrix thead th{padding:0;text-align:center;color:var(--ink-2);font-size:.72rem}
.matrix td{width:25px;min-width:25px;height:22px;padding:0;border-radius:4px;background:var(--grid)}
.matrix td.up{background:var(--blue)}.matrix td.down{background:var(--red)}.matrix td.none{background:none}
.matrix th i{display:inline-block;width:1.7em;font-style:normal;color:var(--ink-2);text-align:right;margin-right:7px}
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:10px}
.small .plot{padding:10px 10px 6px}
.small h3{margin:0 0 4px;font-size:.86rem}
h3.apart{margin-top:22px}
details.apart{margin-top:14px}
details.apart summary{color:var(--ink-2);font-size:.9rem}
.method dt{font-weight:620;margin-top:12px}.method dd{margin:2px 0 0;max-width:80ch;color:var(--ink-2)}
.method{margin:0}
.left-out{margin:0;padding-left:1.2em;max-width:90ch}
@media (max-width:700px){.strips{padding:6px 12px 8px}
.strip{grid-template-columns:minmax(0,1fr) auto;gap:0 12px;padding:8px 0 5px}
.strip .line,.strip .ticks{grid-column:1/-1;grid-row:2;margin:0 5px}
.axis{padding:0}.axis .ticks{grid-row:1}
.strip .figure{text-align:right}.strip .figure small{font-size:.76rem}
.verdict{padding:14px 16px;font-size:1rem}
.small{grid-template-columns:1fr 1fr;gap:8px}.small .plot{padding:8px 6px 4px}
.small h3{font-size:.78rem}
.table th,.table td{padding:6px 9px}}
""".strip()
