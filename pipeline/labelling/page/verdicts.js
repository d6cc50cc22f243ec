// Verdicts

function decide(verdict, label) {
  const items = deciding();
  if (!items.length || undoing || performance.now() < guarded) return;
  const near = tab !== "explore" && $("together").checked ? items[0].near.map((other) => other.digest) : [];
  const body = { digests: [...new Set([...items.map((item) => item.digest), ...near])], verdict, queue: tab, rank: Math.min(...items.map((item) => item.rank)) };
  if (verdict === "class") body.class = label;
  enqueue({ body, items });
  say(`${verdict === "class" ? name(label) : VERDICTS[verdict]}: ${body.digests.length === 1 ? file(items[0]) : count(body.digests.length, "image")}`);
  rest();
}

function enqueue(job) {
  const { digests, verdict } = job.body;
  refused = lastSkip = null;
  $("again").hidden = true;
  write("finished", "");
  for (const item of job.items) decided.set(item.digest, item);
  if (verdict === "class" && !state.classes.includes(job.body.class)) state.classes.push(job.body.class);
  drop(digests);
  view.items = view.items.map((item) => (digests.includes(item.digest) ? { ...item, verdict, label: job.body.class ?? item.label } : item));
  view.selected.clear();
  outbox.push(job);
  if (job.body.queue === "explore") drawGrid();
  show();
  sending ??= send();
  if (tab !== "explore" && queues[tab].items.length < 6 && !queues[tab].asking) refill(tab); // faster than the server answers
}

async function send() {
  let wait = 500;
  while (outbox.length) {
    const job = outbox[0];
    try {
      recorded = (await call("verdict", "POST", job.body)).number;
      outbox.shift();
      wait = 500;
    } catch (error) {
      if (error instanceof Refusal) {
        outbox.shift();
        giveBack(job, error);
      } else {
        $("unsaved").textContent = `${count(outbox.length, "verdict")} not saved yet, retrying …`;
        await pause(wait);
        wait = Math.min(2 * wait, 15000);
        continue;
      }
    }
    $("unsaved").textContent = "";
  }
  sending = null;
  refresh();
}

function giveBack(job, error) {
  bringBack(job.body.queue, job.body.digests, job.items[0]);
  guarded = performance.now() + 800; // a key meant for the image before must not decide this one
  refused = job;
  say(`Not saved: ${error.message}`, true);
  $("again").hidden = false;
}

function bringBack(kind, digests, item) {
  drop(digests);
  if (kind === "explore") {
    view.items = view.items.map((one) => (digests.includes(one.digest) ? decided.get(one.digest) ?? one : one));
    view.selected = new Set(digests);
    if (tab !== "explore" || !view.items.some((one) => view.selected.has(one.digest))) open("explore");
    return drawGrid();
  }
  queues[kind].items.unshift(item);
  if (tab !== kind) open(kind);
  show();
  $("card").classList.remove("back");
  requestAnimationFrame(() => $("card").classList.add("back"));
}

async function undo() {
  if (undoing) return;
  if (lastSkip) return unskip();
  if ($("unsaved").textContent) return say("The last verdict is not saved yet.", true);
  undoing = true;
  try {
    await sending;
    const { digests, queue, items, verdict, class: label, last } = await call("undo", "POST", recorded ? { number: recorded } : {});
    recorded = last?.number ?? 0;
    bringBack(queue, digests, items[0]);
    say(`Taken back: ${verdict === "class" ? name(label) : VERDICTS[verdict]}, ${digests.length === 1 ? file(items[0]) : count(digests.length, "image")}.`);
    refresh();
  } catch (error) {
    say(reason(error), true);
    load();
  } finally {
    undoing = false;
  }
}

function unskip() {
  const { kind, digest } = lastSkip, queue = queues[kind], item = queue.items.find((one) => one.digest === digest);
  lastSkip = null;
  if (!item) return;
  queue.skipped.delete(digest);
  queue.items = [item, ...queue.items.filter((one) => one !== item)];
  if (tab !== kind) open(kind);
  say(`Back: ${file(item)}.`);
  show();
}

function skip() {
  const queue = queues[tab], item = current();
  if (!item || performance.now() < guarded) return;
  queue.skipped.add(item.digest);
  lastSkip = { kind: tab, digest: item.digest };
  queue.items.push(queue.items.shift());
  say(queue.items.length > 1 ? "Skipped: it comes again at the end." : "This is the only image left here.");
  show();
  rest();
  if (queue.items.length < 12) refill(tab);
}
