// Queues: the first item is the card

const current = () => queues[tab]?.items[0];
const deciding = () => (tab === "explore" ? view.items.filter((item) => view.selected.has(item.digest)) : queues[tab].items.slice(0, 1));
const pending = () => outbox.flatMap((job) => job.body.digests);

function drop(digests) {
  for (const queue of Object.values(queues)) {
    queue.items = queue.items.filter((item) => !digests.includes(item.digest));
    for (const digest of digests) queue.skipped.delete(digest);
  }
}

async function refill(kind) {
  const queue = queues[kind], turn = ++queue.turn, before = pending();
  queue.asking += 1;
  try {
    const answer = await call(`queue?kind=${kind}&n=${Math.min(500, 12 + queue.skipped.size + before.length)}`);
    if (turn !== queue.turn) return;
    const kept = tab === kind ? queue.items.slice(0, 1) : [];
    const skipped = queue.items.slice(kept.length).filter((item) => queue.skipped.has(item.digest));
    const out = new Set([...before, ...pending(), ...[...kept, ...skipped].map((item) => item.digest)]);
    queue.items = [...kept, ...answer.items.filter((item) => !out.has(item.digest) && out.add(item.digest)), ...skipped];
  } catch (error) {
    say(reason(error), true);
  } finally {
    queue.asking -= 1;
  }
  if (tab === kind) show();
}

const ahead = new Map(); // pictures of the next images, kept so that they appear at once
function preload() {
  const next = queues[tab].items.slice(1, 3).map((item) => item.digest);
  for (const digest of ahead.keys()) if (!next.includes(digest) && digest !== current()?.digest) ahead.delete(digest);
  for (const digest of next) if (!ahead.has(digest)) ahead.set(digest, Object.assign(new Image(), { src: address(digest, 640) }));
}
