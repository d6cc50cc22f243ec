// The status

const seen = []; // points of the chart
let asking = null;

function refresh() {
  load();
  for (const kind of ["fix", "label"]) if (tab === kind) refill(kind);
}

async function load() {
  clearTimeout(asking);
  const ran = state?.training.running;
  try {
    state = await call("state");
    if ($("message").textContent === SILENT) say("");
  } catch (error) {
    say(reason(error), true);
    asking = setTimeout(load, 5000);
    return;
  }
  if (!outbox.length) recorded = state.last?.number ?? 0;
  showState();
  if (state.training.running) asking = setTimeout(load, 2000);
  else if (ran && tab !== "explore") refill(tab);
}

function showState() {
  const { accuracy, accuracy_before: before, training, forecast, by_verdict: by, last } = state;
  $("set").textContent = state.set;
  document.documentElement.style.setProperty("--rows", Math.max(1, Math.min(5, state.classes.length)));
  for (const kind of ["fix", "label"]) $(`tab-${kind}`).querySelector("span").textContent = state.left[kind].toLocaleString("en");
  write("labels", count(state.labels, "label"));
  write("verdicts", [by.class && `${by.class} with a class`, by.unsure && `${by.unsure} unsure`, by.bad && count(by.bad, "bad image"), by.none && `${by.none} none of these`, state.images_per_hour !== null && `${Math.round(state.images_per_hour).toLocaleString("en")} images an hour`].filter(Boolean).join(" · "));
  const digits = (part) => (100 * part).toFixed(1);
  write("accuracy", accuracy ? `validation accuracy ${percent(accuracy.value, 1)} (${digits(accuracy.low)} to ${digits(accuracy.high)}), ${count(accuracy.images, "image")}` : "validation accuracy: no estimate yet");
  $("short").textContent = `${count(state.labels, "label")}${accuracy ? ` · accuracy ${percent(accuracy.value, 1)}` : ""}`;
  write("training", training.running ? "training …" : training.seconds === null ? "not trained yet" : `trained in ${training.seconds.toFixed(1)} s on ${count(state.train, "training image")}`);
  write("forecast", forecast ? `the next ${forecast.labels} labels: roughly ${points(forecast.gain)} points` : "");
  write("found-errors", state.reviewed ? `${count(state.reviewed, "label")} reviewed, ${state.changed} of them wrong${state.per_100 === null ? "" : `; lately ${+state.per_100.toFixed(1)} errors found per 100 reviewed`}` : "");
  write("flattered", before ? `Validation labels were changed, where the model disagreed: this accuracy flatters it. By the labels as extracted it is ${percent(before.value, 1)}.` : "");
  write("advice", training.error || state.advice || "");
  $("undo").title = last ? `Undo: ${last.verdict === "class" ? name(last.class) : VERDICTS[last.verdict]}, ${count(last.images, "image")}` : "";
  showFilter();
  if (!accuracy || (training.running && seen.at(-1)?.value === accuracy.value)) return;
  while (seen.at(-1)?.labels >= state.labels) seen.pop(); // trained again, or undone
  seen.push({ labels: state.labels, ...accuracy });
  if (seen.length > 200) seen.shift();
  showChart(seen);
}

function showFilter() {
  const filter = $("filter"), chosen = filter.value;
  if (document.activeElement === filter) return;
  const choices = [["", "all images"], ["split=unlabelled", `unlabelled (${state.unlabelled})`], ...[...state.classes].sort((a, b) => name(a).localeCompare(name(b))).flatMap((label) => [[`class=${label}`, `${name(label)} (${Object.hasOwn(state.counts, label) ? state.counts[label] : 0})`], ...(state.unlabelled ? [[`likely=${label}`, `unlabelled, looks like ${name(label)}`]] : [])])];
  filter.replaceChildren(...choices.map(([value, words]) => make("option", { value }, words)));
  filter.value = choices.some(([value]) => value === chosen) ? chosen : "";
}

function showChart(spots) {
  let low = Math.floor(20 * Math.min(...spots.map((spot) => spot.low))) / 20, high = Math.ceil(20 * Math.max(...spots.map((spot) => spot.high))) / 20;
  if (high - low < .1) [low, high] = high > .95 ? [.9, 1] : [low, low + .1]; // a small change must look small
  const first = spots[0], last = spots.at(-1), one = first.labels === last.labels, draw = [];
  const add = (tag, attributes, words = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(words);
    draw.push(made);
  };
  const x = ({ labels }) => (one ? 145 : 42 + 208 * (labels - first.labels) / (last.labels - first.labels)), y = (part) => 116 - 94 * (part - low) / (high - low);
  const path = (key, list = spots) => list.map((spot) => `${x(spot).toFixed(1)},${y(spot[key]).toFixed(1)}`).join(" ");
  for (const part of [low, (low + high) / 2, high]) {
    add("line", { x1: 42, x2: 250, y1: y(part), y2: y(part), stroke: "var(--line)" });
    add("text", { x: 38, y: y(part) + 4, "text-anchor": "end" }, `${+(100 * part).toFixed(1)}\u00a0%`);
  }
  add("polygon", { points: `${path("low")} ${path("high", [...spots].reverse())}`, fill: "var(--first)", "fill-opacity": .25, stroke: "var(--first)", "stroke-opacity": .4 });
  add("polyline", { points: path("value"), fill: "none", stroke: "var(--first)", "stroke-width": 2, "stroke-linejoin": "round" });
  add("circle", { cx: x(last), cy: y(last.value), r: 3.5, fill: "var(--first)" });
  for (const spot of one ? [first] : [first, last]) add("text", { x: x(spot), y: 132, "text-anchor": "middle" }, spot.labels.toLocaleString("en"));
  add("text", { x: 146, y: 146, "text-anchor": "middle" }, "labels");
  add("text", { x: 42, y: 12 }, "validation accuracy and its interval");
  $("chart").replaceChildren(...draw);
  $("chart").setAttribute("aria-label", `Validation accuracy against labels: ${percent(first.value, 1)} at ${first.labels}, ${percent(last.value, 1)} at ${last.labels} labels.`);
  $("chart").removeAttribute("hidden");
}

$("finish").onclick = async () => {
  if (outbox.length) return say("Some verdicts are not saved yet.", true);
  $("finish").disabled = true;
  write("finished", "Writing the run …");
  try {
    const done = await call("finish", "POST"), run = /^[\w./~-]+$/.test(done.run) ? done.run : `'${done.run.replaceAll("'", "'\\''")}'`;
    write("finished", `Run written to ${done.run} in ${done.seconds.toFixed(1)} s: validation accuracy ${percent(done.valid_accuracy, 1)}. Next: `);
    $("finished").append(text("code", `headgraft export ${run} model.safetensors`));
    $("finished").scrollIntoView({ block: "nearest" });
    load();
  } catch (error) {
    write("finished", `Not written: ${reason(error)}`);
  } finally {
    $("finish").disabled = false;
  }
};

const wide = matchMedia("(min-width: 76rem)");
wide.onchange = () => { $("status").open = wide.matches; };
wide.onchange();
async function start() {
  await load();
  if (!state) return setTimeout(start, 5000);
  open(state.train + state.valid > 0 && state.left.fix > 0 ? "fix" : "label");
}
start();
