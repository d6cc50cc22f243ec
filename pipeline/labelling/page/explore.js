// Explore

async function explore(like, label) {
  const turn = ++view.turn;
  Object.assign(view, { like, active: 0, anchor: 0, asking: view.asking + 1 });
  view.selected.clear();
  if (label !== undefined) $("filter").value = label;
  $("like").hidden = !like;
  if (like) {
    $("like").querySelector("img").src = address(like.digest, 160);
    $("like").querySelector("span").textContent = `similar to ${file(like)}`;
  }
  const chosen = $("filter").value, [key] = chosen.split("=", 1), value = chosen.slice(key.length + 1);
  try {
    const answer = await call(`queue?kind=explore&n=60${like ? `&like=${encodeURIComponent(like.digest)}` : ""}${chosen ? `&${key}=${encodeURIComponent(value)}` : ""}`);
    if (turn === view.turn) view.items = answer.items;
    if (turn === view.turn) $("found").textContent = answer.left > answer.items.length ? `${answer.items.length} of ${count(answer.left, "image")}` : count(answer.items.length, "image");
  } catch (error) {
    say(reason(error), true);
  } finally {
    view.asking -= 1;
  }
  if (turn === view.turn) drawGrid();
}

function tileOf(item, place) {
  const notes = [item.split === "valid" ? "validation" : "", item.verdict === "class" ? "✓ decided" : VERDICTS[item.verdict] ?? ""].filter(Boolean).join(", ");
  const image = make("img", { loading: "lazy", src: address(item.digest, 320), alt: `${item.path}: ${name(item.label)}` });
  const tile = make("button", { type: "button", className: "tile", onclick: (event) => select(place, event.shiftKey), onfocus: () => { view.active = place; showSelection(); } }, image);
  const similar = make("button", { type: "button", className: "similar", ariaLabel: `Similar to ${item.path}`, onclick: () => explore(item, "") }, "Similar");
  return make("li", {}, tile, make("p", {}, text("span", name(item.label), item.label === null ? "quiet" : ""), make("br"), text("span", notes || "\u00a0", "quiet")), similar);
}

function drawGrid() {
  const focused = $("grid").contains(document.activeElement);
  $("grid").replaceChildren(...view.items.map(tileOf));
  show();
  if (focused) rest();
}

function select(place, range) {
  const digest = view.items[place].digest;
  if (range) for (const item of view.items.slice(Math.min(place, view.anchor), Math.max(place, view.anchor) + 1)) view.selected.add(item.digest);
  else if (!view.selected.delete(digest)) view.selected.add(digest);
  if (!range) view.anchor = place;
  view.active = place;
  show();
}

function showSelection() {
  if (tab !== "explore") return;
  const items = deciding();
  [...$("grid").children].forEach((line, place) => {
    line.firstChild.setAttribute("aria-pressed", view.selected.has(view.items[place]?.digest));
    line.firstChild.tabIndex = line.lastChild.tabIndex = place === view.active ? 0 : -1;
  });
  write("selected", items.length ? `${items.length} selected: choose a verdict for ${items.length === 1 ? "it" : "all of them"}` : "Select images to decide them together.");
  if (items.length) offer(items);
}

function step(key) {
  const tiles = [...$("grid").children].map((line) => line.firstChild), top = tiles[0]?.offsetParent && $("grid").firstChild.offsetTop;
  const wide = [...$("grid").children].filter((line) => line.offsetTop === top).length;
  const to = view.active + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[key];
  const inside = $("grid").contains(document.activeElement);
  tiles[inside ? Math.max(0, Math.min(tiles.length - 1, to)) : view.active]?.focus();
}
