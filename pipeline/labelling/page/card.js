// The card

function show() {
  const explore = tab === "explore", item = current(), source = explore ? view : queues[tab], full = explore ? view.items.length : item;
  $("card").hidden = !item;
  $("explore").hidden = !explore;
  $("decide").hidden = !full;
  $("other").hidden = explore;
  $("panel").className = explore && !view.selected.size ? "explore idle" : tab;
  write("empty", full ? "" : source.asking || outbox.length ? "Loading …" : tab === "fix" && state.train + state.valid === 0 ? "No labelled images yet: label some first (key l)." : EMPTY[tab]);
  if (explore) return showSelection();
  write("selected", "");
  preload();
  if (!item) delete $("card").dataset.digest;
  if (!item || $("card").dataset.digest === item.digest) return;
  $("card").dataset.digest = item.digest;
  $("file").title = item.path;
  $("file").replaceChildren(file(item), " ", text("span", SPLITS[item.split], "quiet"));
  showPicture(item);
  showClaim(item);
  showNear(item);
  offer([item]);
}

function showPicture(item) {
  const picture = $("picture"), source = address(item.digest, 640);
  $("gone").hidden = true;
  picture.classList.add("waiting");
  picture.alt = `image ${item.path}`;
  picture.onload = () => picture.classList.remove("waiting");
  picture.onerror = async () => {
    const why = await call(source).then(() => "The image cannot be shown.", reason);
    if (current()?.digest !== item.digest) return;
    write("gone", why);
    $("together").checked = false; // nobody has seen that its near-duplicates are as bad
  };
  picture.src = source;
  if (picture.complete && picture.naturalWidth) picture.classList.remove("waiting");
}

function showClaim({ label, likely, agreement }) {
  const top = likely[0]?.class, rest = [];
  if (top !== undefined && top !== label) rest.push(`, looks like ${name(top)}`);
  if (agreement !== null) rest.push(`, agreement ${percent(agreement)}`);
  $("claim").replaceChildren(...(label === null ? [text("span", "not labelled", "quiet")] : ["labelled ", text("b", name(label)), ...rest]));
}

function showNear({ label, near }) {
  $("near").hidden = !near.length;
  $("together").checked = true;
  $("many").textContent = count(near.length, "near-duplicate");
  $("near").querySelector("ul").replaceChildren(...near.map((other) => {
    const differs = label !== null && other.label !== null && other.label !== label;
    const image = make("img", { src: address(other.digest, 160), alt: `near-duplicate ${other.path}`, title: `${other.path}, cosine similarity ${other.cosine.toFixed(3)}` });
    return make("li", {}, image, differs ? text("span", `other label: ${name(other.label)}`, "bad") : name(other.label));
  }));
}

// The classes of the number keys: for several images, by the mean of their probabilities
function offer(items) {
  const sums = new Map(), labels = new Set(items.map((item) => item.label)), same = labels.size === 1 ? items[0].label : null;
  const blind = items.some((item) => item.random);
  for (const guess of items.flatMap((item) => item.likely)) sums.set(guess.class, (sums.get(guess.class) ?? 0) + guess.probability / items.length);
  offered = [...sums].sort((a, b) => b[1] - a[1]).slice(0, 5);
  $("guess").textContent = blind ? "Drawn at random for validation: the model’s guess is hidden, so that it cannot influence you." : offered.length ? "Likely classes" : "No likely classes yet: type a class below.";
  $("likely").replaceChildren(...offered.map(([label, probability], place) => {
    const bar = make("i"), shown = blind ? "" : probability < .005 ? "<\u00a01\u00a0%" : percent(probability), words = name(label) + (label === same ? " (current label)" : "");
    bar.style.width = `${100 * probability}%`;
    return make("li", {}, make("button", { type: "button", onclick: () => decide("class", label) }, text("kbd", place + 1), text("span", words, "name"), text("span", shown, "percent"), bar));
  }));
  const right = same ?? (tab === "label" && !blind ? offered[0]?.[0] : null) ?? null, words = same === null ? "Likeliest" : "Label is right";
  $("right").disabled = right === null;
  $("right").onclick = () => decide("class", right);
  $("right").replaceChildren(...(right === null ? ["No label to confirm"] : [`${words}: ${name(right)} `, tab === "explore" ? "" : text("kbd", "Enter")]));
}
