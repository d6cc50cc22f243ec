// The type-ahead field

const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().replace(/\s+/g, " ").trim();
let matches = [], marked = 0, moved = false;

// 0: the same, 1: begins so, 2: a word of it begins so, 3: holds it, 4: does not
function closeness(word, asked) {
  const at = ` ${word}`.indexOf(` ${asked}`);
  return word === asked ? 0 : at === 0 ? 1 : at > 0 ? 2 : word.includes(asked) ? 3 : 4;
}

function search() {
  const typed = $("choose").value.replace(/\s+/g, " ").trim(), asked = plain(typed), likely = offered.map(([label]) => label);
  const rank = (label) => Math.min(closeness(plain(name(label)), asked), closeness(plain(label), asked));
  const order = (label) => rank(label) * 10 + (likely.includes(label) ? likely.indexOf(label) : 9);
  const found = state.classes.filter((label) => rank(label) < 4).sort((a, b) => order(a) - order(b) || name(a).localeCompare(name(b)));
  matches = found.slice(0, 100).map((label) => ({ label, words: name(label), note: name(label) === label ? "" : label }));
  if (typed && !found.some((label) => rank(label) === 0)) matches.push({ label: typed, words: `Make new class “${typed}”`, note: "" });
  $("options").replaceChildren(...matches.map((match, place) => make("li", {
    id: `option-${place}`, role: "option", onclick: () => take(match), onmousedown: (event) => event.preventDefault(), // the field keeps the focus
  }, match.words, text("span", match.note, "quiet"))));
  expand(matches.length > 0);
  moved = false;
  mark(matches.length === 1 || (found.length && rank(found[0]) < 2) ? 0 : -1); // Enter takes no other class than what begins so
}

function expand(open) {
  $("options").hidden = !open;
  $("choose").setAttribute("aria-expanded", open);
  if (!open) $("choose").removeAttribute("aria-activedescendant");
}

function mark(place) {
  marked = Math.max(-1, Math.min(matches.length - 1, place));
  [...$("options").children].forEach((line, at) => line.setAttribute("aria-selected", at === marked));
  if (marked < 0) return $("choose").removeAttribute("aria-activedescendant");
  $("choose").setAttribute("aria-activedescendant", `option-${marked}`);
  $("options").children[marked].scrollIntoView({ block: "nearest" });
}

function take(match) {
  $("choose").value = "";
  $("choose").blur();
  decide("class", match.label);
}

$("choose").onfocus = $("choose").oninput = () => { if (state) search(); };
$("choose").onblur = () => expand(false);
$("choose").onkeydown = (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
  if (event.isComposing || (!step && event.key !== "Enter" && event.key !== "Escape")) return;
  event.preventDefault();
  event.stopPropagation();
  if (step && $("options").hidden) search();
  else if (step) { moved = true; mark(Math.max(0, marked + step)); }
  else if (event.key === "Enter" && (moved || plain($("choose").value)) && !event.repeat) {
    if (matches[marked]) take(matches[marked]);
    else say("Choose one with the arrow keys, then Enter.", true);
  }
  else if (event.key === "Escape") { $("choose").value = ""; rest(); }
};
