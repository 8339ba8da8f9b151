"""The style sheet of a report. The plots use its variables, so they follow the light or the dark page."""

CSS = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1b1e24;--ink-2:#5c6370;--line:#e4e6ea;
--axis:#c9ced6;--grid:#eceef2;--mark:#eaf3fa;--blue:#0072b2;--red:#d55e00;--green:#009e73;--pink:#cc79a7;
--amber:#e69f00;--grey:#8a8f98}
@media (prefers-color-scheme:dark){:root{--bg:#111317;--card:#181b21;--ink:#e6e8ec;--ink-2:#a0a7b4;--line:#2a2f38;
--axis:#3d4450;--grid:#262b33;--mark:#16283a;--blue:#56b4e9;--red:#f58446;--green:#2fc79b;--pink:#e39cc3;
--amber:#f0b93a;--grey:#8f96a3}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","Noto Sans","Liberation Sans",Arial,sans-serif;overflow-wrap:anywhere}
main{max-width:1120px;margin:0 auto;padding:48px 24px 64px}
header{margin-bottom:28px}
h1{font-size:2.1rem;line-height:1.15;letter-spacing:-.02em;margin:0 0 8px;font-weight:650}
h2{font-size:1.25rem;letter-spacing:-.01em;margin:0 0 6px;font-weight:620}
h2 small,h3 small{font-weight:400;color:var(--ink-2);font-size:.85em;margin-left:.4em}
h3{font-size:.97rem;margin:0 0 8px;font-weight:620}
section{margin-top:48px}
.eyebrow{margin:0 0 6px;color:var(--ink-2);font-size:.78rem;letter-spacing:.08em;text-transform:uppercase}
.facts{margin:0;color:var(--ink-2)}
.note,figcaption,.source,footer{color:var(--ink-2);font-size:.86rem}
p.note{margin:0 0 16px;max-width:72ch}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(158px,1fr));gap:10px;margin:0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:13px 12px}
.card dt{color:var(--ink-2);font-size:.82rem}
.card dd{margin:4px 0 0;font-size:1.18rem;font-weight:620;letter-spacing:-.01em;line-height:1.3;
font-variant-numeric:tabular-nums}
.card span{font-size:.84rem;font-weight:400;color:var(--ink-2);letter-spacing:0}
.card small{display:block;margin-top:2px;line-height:1.4;color:var(--ink-2);font-size:.78rem;
font-weight:400;letter-spacing:0}
.advice{list-style:none;margin:0;padding:0}
.advice li{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--amber);border-radius:8px;
padding:10px 14px;margin-bottom:8px}
.advice .warn{border-left-color:var(--red)}
.advice small{color:var(--ink-2);font-size:.82rem;display:block}
.plots{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:16px}
.plot{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px 14px;
display:flex;flex-direction:column;break-inside:avoid}
#plot-reward{margin-bottom:16px}
.plot svg{display:block;width:100%;height:auto}
.plot svg *{stroke-linejoin:round;stroke-linecap:butt}
.plot text{font-family:inherit!important}
figcaption{margin-top:8px;line-height:1.45;max-width:110ch}
.on-narrow{display:none}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:1px 16px;margin:-2px 0 6px;padding:0;font-size:.82rem;
color:var(--ink-2)}
.legend i{display:inline-block;width:18px;margin-right:6px;vertical-align:middle;background:var(--key)}
.legend .line{height:2.5px;border-radius:2px}
.legend .band{height:11px;opacity:.28}
.legend .area{width:11px;height:11px;border-radius:2px}
.legend .dot{width:8px;height:8px;margin-left:2px;transform:rotate(45deg)}
.formula{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:10px 22px;overflow-x:auto}
.formula p{margin:12px 0}
.formula svg{display:block;font-size:1.2rem;fill:currentColor}
.formula code{font-size:.9rem}
.groups{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:16px;align-items:start}
.group{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px}
.source{margin:-6px 0 8px}
pre{margin:0;font:.84rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere;max-height:15em;overflow:auto}
pre.prompt{background:var(--mark);border-radius:6px;padding:8px 10px;margin-bottom:8px}
pre.empty{color:var(--ink-2)}
.role{color:var(--ink-2);font-size:.78rem;margin-bottom:2px}
.columns{display:grid;grid-template-columns:auto minmax(0,1fr);gap:2px 12px;margin:0 0 4px;font-size:.86rem}
.columns dt{color:var(--ink-2)}
.columns dd{margin:0}
.completions{list-style:none;margin:10px 0 0;padding:0}
.completions li{border-top:1px solid var(--line);padding:8px 0 9px}
.completions li:last-child{padding-bottom:0}
.meta{display:flex;flex-wrap:wrap;gap:2px 14px;color:var(--ink-2);font-size:.82rem;margin-bottom:2px;
font-variant-numeric:tabular-nums}
.meta b{color:var(--ink);font-weight:620}
.up{color:var(--blue)}.down,.cut{color:var(--red)}
summary{cursor:pointer}
summary h2{display:inline;margin-right:10px}
.options{width:100%;border-collapse:collapse;margin-top:14px;font-size:.86rem}
.options th,.options td{text-align:left;vertical-align:top;padding:5px 10px;border-top:1px solid var(--line)}
.options thead th{border-top:0;color:var(--ink-2);font-weight:400}
.options tbody th{font-weight:400;color:var(--ink-2);width:40%}
.options .changed th,.options .changed td{background:var(--mark);color:var(--ink);font-weight:600}
.options .changed .note{font-weight:400;margin-left:.6em}
footer{margin-top:56px;border-top:1px solid var(--line);padding-top:14px}
:focus-visible{outline:2px solid var(--blue);outline-offset:2px}
@media (max-width:700px){main{padding:28px 14px 40px}h1{font-size:1.65rem}section{margin-top:36px}
.plots,.groups{grid-template-columns:minmax(0,1fr)}.cards{grid-template-columns:1fr 1fr;gap:8px}
.card{padding:11px 12px}.card:last-child:nth-child(odd){grid-column:1/-1}
.plot{padding:13px 12px 12px}.formula{padding:6px 14px}
.group{padding:13px 12px}.on-wide{display:none}.on-narrow{display:block}}
@media print{body{background:#fff}main{max-width:none;padding:0}pre{max-height:none}}
""".strip()
