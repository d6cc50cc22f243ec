// Tabs and keys

function open(kind, like = null) {
  tab = kind;
  for (const one of ["fix", "label", "explore"]) {
    $(`tab-${one}`).setAttribute("aria-selected", one === kind);
    $(`tab-${one}`).tabIndex = one === kind ? 0 : -1;
  }
  $("panel").setAttribute("aria-labelledby", `tab-${kind}`);
  delete $("card").dataset.digest;
  if (kind === "explore") explore(like, like ? "" : undefined);
  else refill(kind);
  show();
  rest();
}

const rest = () => { (tab === "explore" ? $("grid").children[view.active]?.firstChild ?? $("panel") : current() ? $("card") : $("panel")).focus({ preventScroll: true }); };

function similar() {
  const item = current() ?? view.items[view.active];
  if (item) open("explore", item);
}

const clear = () => { view.selected.clear(); show(); };
const confirm = () => { if (!$("right").disabled && !$("decide").hidden) $("right").click(); };
const KEYS = {
  f: () => open("fix"),
  l: () => open("label"),
  e: () => open("explore"),
  u: () => decide("unsure"),
  b: () => decide("bad"),
  n: () => decide("none"),
  s: similar,
  z: undo,
  Backspace: undo,
  "?": () => $("keys").showModal(),
  "/": () => { if (deciding().length) $("choose").focus(); },
  Enter: () => { if (tab !== "explore") confirm(); },
  " ": () => { if (tab !== "explore") skip(); },
  Escape: clear,
};
const HELP = [
  ["1 to 5", "the likely class with this number"],
  ["Enter", "Fix: the label is right; Label: the likeliest class"],
  ["/", "type any class, or a new one"],
  ["u, b, n", "unsure, bad image, none of these classes"],
  ["Space", "skip; in Explore: select"],
  ["s", "show similar images"],
  ["z, Backspace", "undo"],
  ["f, l, e", "Fix, Label, Explore"],
  ["Arrows, Shift+click, Ctrl+A", "Explore: move, select a range, select all"],
  ["Escape", "Explore: clear the selection"],
];

addEventListener("keydown", (event) => {
  const { target } = event, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!state || $("keys").open || event.altKey || event.isComposing || target.closest("input[type=text], select")) return;
  let act = KEYS[key];
  if (event.ctrlKey || event.metaKey) act = key === "z" && !event.shiftKey ? undo : key === "a" && tab === "explore" ? () => { view.selected = new Set(view.items.map((item) => item.digest)); show(); } : undefined;
  else if (key === "Enter" || key === " ") act = target.closest("button, summary, a") || (key === " " && target.closest("input")) ? undefined : act;
  else if (key.startsWith("Arrow")) act = target.closest("[role=tab]") ? () => turn(target, key) : tab === "explore" ? () => step(key) : undefined;
  else if (/^[1-5]$/.test(key)) act = () => { const [label] = offered[key - 1] ?? []; if (label !== undefined) decide("class", label); };
  if (!act) return;
  event.preventDefault();
  if (!event.repeat || key.startsWith("Arrow")) act();
});

function turn(from, key) {
  const tabs = [...$("tabs").children], way = { ArrowLeft: 2, ArrowRight: 1 }[key] ?? 0;
  tabs[(tabs.indexOf(from) + way) % 3].focus();
}

for (const kind of ["fix", "label", "explore"]) $(`tab-${kind}`).onclick = () => open(kind);
for (const verdict of Object.keys(VERDICTS)) $(verdict).onclick = () => decide(verdict);
$("undo").onclick = undo;
$("skip").onclick = skip;
$("similar").onclick = similar;
$("help").onclick = KEYS["?"];
$("again").onclick = () => { if (refused) { guarded = 0; enqueue(refused); say("Trying again …"); rest(); } };
$("filter").onchange = () => explore(view.like);
$("unlike").onclick = () => explore(null, "");
$("keys").querySelector("dl").append(...HELP.flatMap(([keys, words]) => [make("dt", {}, text("kbd", keys)), text("dd", words)]));
addEventListener("beforeunload", (event) => { if (outbox.length) event.preventDefault(); });
