"""How the report looks: one style sheet, for wide and narrow, light and dark, screen and paper.

Colours are pairs of light and dark. Series c0 .. c5 differ in lightness too, for readers who tell few colours apart.
"""

STYLE = """
:root{color-scheme:light dark;--paper:#f6f5f1;--card:#fff;--ink:#1d1c24;--soft:#5d5b69;--line:#dedce4;--grid:#e9e7ee;
--kept:#3b2d91;--group:#a99fe0;--cut:#e2e0e8;--c0:#3b2d91;--c1:#0b7a5b;--c2:#c2506a;--c3:#b06f00;--c4:#2f86c9;
--c5:#8a3f8a;--good:#0b7a5b}
@media (prefers-color-scheme:dark){:root{--paper:#131218;--card:#1c1b23;--ink:#eceaf2;--soft:#a6a3b4;--line:#34323f;
--grid:#2a2833;--kept:#9d8ff5;--group:#5a4fa3;--cut:#32303d;--c0:#a598fb;--c1:#4cc9a0;--c2:#f08aa0;--c3:#e3aa4b;
--c4:#7bbdf0;--c5:#d391d3;--good:#4cc9a0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","DejaVu Sans",sans-serif;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 20px}
header{padding-top:36px}
.eyebrow{margin:0;color:var(--kept);font-weight:650;font-size:13px}
h1{margin:.1em 0 .25em;font-size:clamp(27px,5vw,44px);line-height:1.12;letter-spacing:-.02em}
h2{margin:0 0 .15em;font-size:21px;letter-spacing:-.01em}
h3{margin:1.5em 0 .3em;font-size:15.5px}h3 small{font-weight:400;color:var(--soft);font-size:13px}
.lead{margin:0 0 1.1em;max-width:74ch;font-size:17px}
.note{margin:.2em 0 1em;max-width:82ch;color:var(--soft);font-size:14.5px}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:22px 24px;margin:18px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0;padding:0}
.tiles div{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:13px 16px}
.tiles dt{color:var(--soft);font-size:13.5px}
.tiles dd{margin:0;font-size:25px;font-weight:650;line-height:1.25;letter-spacing:-.01em}
.tiles small{display:block;font-size:13px;font-weight:400;color:var(--soft);letter-spacing:0;line-height:1.35}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,290px),1fr));gap:22px 30px}
.pair{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:22px 34px}
figure{margin:0;min-width:0}.pair+figure{margin-top:12px}
figcaption{font-weight:600;font-size:14.5px;margin-bottom:6px}
figcaption small{font-weight:400;color:var(--soft);font-size:13px}
.canvas{position:relative;margin:4px 8px 40px 3.7em;font-size:12px;color:var(--soft)}
.canvas svg{display:block;width:100%;height:100%;overflow:visible}
.canvas span{position:absolute;white-space:nowrap;line-height:1}
.y{right:100%;padding-right:7px;transform:translateY(-50%)}
.x{top:100%;padding-top:7px;transform:translateX(-50%)}
.canvas .xl{top:100%;left:0;right:0;padding-top:23px;text-align:center;white-space:normal}
.in{left:8px;transform:translateY(-50%);color:#fff}
.rows .in{color:var(--card);font-weight:600}
.gone{position:absolute;left:0;right:0;border-radius:2px;
background:repeating-linear-gradient(135deg,var(--line) 0 2px,transparent 2px 7px)}
svg path{fill:none;stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
svg .grid{stroke:var(--grid);stroke-width:1}svg .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}
svg .dots{stroke-width:6;stroke-linecap:round}
svg .dash{stroke-dasharray:6 4;stroke-width:1.6}svg .dotted{stroke-dasharray:1.5 3.5;stroke-width:1.6}
svg .area{stroke:none;opacity:.16}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}
.c5{stroke:var(--c5)}.cn{stroke:var(--ink)}.cs{stroke:var(--soft)}
.area.c0{fill:var(--c0)}.area.c1{fill:var(--c1)}
svg .kept{fill:var(--kept)}svg .group{fill:var(--group)}svg .cut{fill:var(--cut)}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;list-style:none;margin:0 0 14px;padding:0;font-size:14px}
.legend svg{width:26px;height:12px;vertical-align:-1px;margin-right:7px;overflow:visible}
.legend i{display:inline-block;width:16px;height:12px;margin-right:7px;border-radius:2px;vertical-align:-1px}
i.kept{background:var(--kept)}i.group{background:var(--group)}i.cut{background:var(--cut)}
i.removed{background:repeating-linear-gradient(135deg,var(--soft) 0 2px,transparent 2px 5px)}
.bars{display:grid;grid-template-columns:minmax(6em,max-content) minmax(60px,1fr) max-content;gap:7px 14px;
align-items:center;font-size:14.5px;margin:10px 0 16px}
.bars>:nth-child(3n){text-align:right}
.bars>:nth-child(3n+1){max-width:17em;min-width:0}
.track{position:relative;height:16px;border-radius:4px;background:var(--cut)}
.track b{position:absolute;top:0;bottom:0;border-radius:4px;background:var(--kept)}
.track.whole{height:10px;margin:0 0 8px;overflow:hidden}.track b.wait{background:var(--group);opacity:.55}
.bars small{color:var(--soft);font-size:13px}
.track b.c1{background:var(--c1)}.track b.plain{background:var(--soft)}
.axis .track{background:none;border-radius:0}
.axis .track::before{content:"";position:absolute;left:0;right:0;top:7px;border-top:1px solid var(--line)}
.axis .track b{border-radius:3px;top:4px;bottom:auto;height:7px;opacity:.38;background:var(--soft)}
.axis .track b.kept{background:var(--kept)}.axis .track b.c1{background:var(--c1)}
.axis .track u{position:absolute;top:1px;width:13px;height:13px;margin-left:-6.5px;border-radius:50%;
background:var(--soft);border:2px solid var(--card)}
.axis .track u.kept{background:var(--kept)}.axis .track u.c1{background:var(--c1)}
.axis .track s{position:absolute;top:-4px;bottom:-4px;border-left:1.5px dashed var(--soft)}
.scroll{overflow-x:auto;margin:8px 0 12px;background:linear-gradient(90deg,transparent,var(--card) 70%) 100% 0/40px 100%
no-repeat local,linear-gradient(90deg,transparent,var(--line)) 100% 0/14px 100% no-repeat scroll}
.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--kept);outline-offset:2px}
table{border-collapse:collapse;min-width:100%;font-size:14.5px}
th,td{padding:6px 12px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap;vertical-align:baseline}
th{font-weight:500;color:var(--soft)}tbody th{color:var(--ink)}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:8em;max-width:17em;padding-left:0}
thead th{white-space:normal;max-width:12em;overflow-wrap:break-word}
code{white-space:nowrap}pre code{white-space:inherit}
td.best{font-weight:700;color:var(--good)}
td small{display:block;color:var(--soft);font-size:12.5px}
details{margin:6px 0}summary{cursor:pointer;color:var(--soft);font-size:14.5px}
pre{margin:8px 0;padding:13px 15px;background:var(--paper);border:1px solid var(--line);border-radius:9px;
white-space:pre-wrap;font:13.5px/1.5 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
footer{padding:4px 20px 40px;color:var(--soft);font-size:13.5px}
a{color:var(--kept)}
@media (max-width:640px){main,header,footer{padding-left:12px;padding-right:12px}section{padding:17px 14px}
.pair{grid-template-columns:minmax(0,1fr)}.tiles{grid-template-columns:1fr 1fr}.tiles dd{font-size:21px}
.bars{grid-template-columns:minmax(0,8.2em) minmax(40px,1fr) max-content;gap:7px 9px;font-size:13.5px}
.axis small{display:block}th:first-child,td:first-child{max-width:10em}th,td{padding:6px 8px}}
@media print{section{break-inside:avoid}body{background:#fff}}
"""
