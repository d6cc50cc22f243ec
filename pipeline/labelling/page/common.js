"use strict";
const $ = (id) => document.getElementById(id);
const make = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const text = (tag, words, className = "") => make(tag, { className }, words);
const write = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; $(id).hidden = !text; };
const say = (text, bad) => { $("message").textContent = text; $("message").className = bad ? "bad" : ""; };
const percent = (part, digits = 0) => `${(100 * part).toFixed(digits)}\u00a0%`;
const points = (part) => `${part < 0 ? "\u2212" : "+"}${Math.abs(100 * part).toFixed(1)}`;
const count = (number, one, more = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : more}`;
const name = (label) => (label === null ? "unlabelled" : Object.hasOwn(state.names, label) ? state.names[label] : label);
const address = (digest, side) => `image/${encodeURIComponent(digest)}?side=${side}`;
const file = (item) => item.path.split("/").pop();
const pause = (milliseconds) => new Promise((done) => { setTimeout(done, milliseconds); });
const VERDICTS = { unsure: "unsure", bad: "bad image", none: "none of these" };
const SPLITS = { train: "training image", valid: "validation image", unlabelled: "unlabelled image" };
const EMPTY = { fix: "No possible label errors left.", label: "No unlabelled images: add some with headgraft extract FOLDER --unlabelled --cache …, then start this again.", explore: "No images here: choose another class." };

const SILENT = "The server does not answer.";

class Refusal extends Error {}

async function call(path, method = "GET", body) {
  const headers = body && { "Content-Type": "application/json" };
  const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(method === "GET" || body ? 20000 : 600000) });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(answer.reason ?? `The server answered with status ${response.status}.`);
  return answer;
}
const reason = (error) => (error instanceof Refusal ? error.message : SILENT);

let state = null, tab = "label";
const queues = { fix: { items: [], skipped: new Set(), turn: 0, asking: 0 }, label: { items: [], skipped: new Set(), turn: 0, asking: 0 } };
const view = { items: [], like: null, selected: new Set(), active: 0, anchor: 0, turn: 0, asking: 0 };
const decided = new Map(); // digest: the item as it was before its verdict
const outbox = []; // verdicts that the server has not answered yet
let sending = null, refused = null, undoing = false, guarded = 0, offered = [];
let recorded = 0, lastSkip = null; // number of a line of the last decision; the image that was skipped after it
