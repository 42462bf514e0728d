// How things are called and shown.
import { h } from "./dom.js";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(n) {
  if (n === null || n === undefined) return "?";
  let unit = 0;
  let value = n;
  while (value >= 1024 && unit + 1 < UNITS.length) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${UNITS[unit]}`;
}

export function rate(bits) {
  if (!bits) return "0";
  const names = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
  let unit = 0;
  let value = bits;
  while (value >= 1000 && unit + 1 < names.length) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${names[unit]}`;
}

export function count(n) {
  return n.toLocaleString("en-US");
}

export function plural(n, word) {
  return `${count(n)} ${word}${n === 1 ? "" : "s"}`;
}

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** Some time ago, or ahead; the moment itself as its title. */
export function when(text) {
  if (!text) return h("span", { class: "dim" }, "–");
  const time = new Date(text);
  const seconds = (Date.now() - time.getTime()) / 1000;
  const words = seconds >= 0 ? (seconds < 5 ? "just now" : `${span(seconds)} ago`) : `in ${span(-seconds)}`;
  return h("time", { datetime: text, title: time.toLocaleString(), class: "tight" }, words);
}

const REQUEST = {
  resolving: ["Resolving", "run"], pending_approval: ["Waits for approval", "wait"], active: ["Active", "run"],
  succeeded: ["Succeeded", "good"], partial: ["Partly done", "wait"], failed: ["Failed", "bad"], cancelled: ["Cancelled", ""],
  rejected: ["Rejected", "bad"], expired: ["Expired", "bad"],
};
const ITEM = {
  queued: ["Queued", ""], claimed: ["Claimed", "run"], hold: ["On hold", "hold"], transferring: ["Transferring", "run"],
  verifying: ["Verifying", "run"], committing: ["Committing", "run"], done: ["Done", "good"], skipped: ["Skipped", "good"],
  failed: ["Failed", "bad"], cancelled: ["Cancelled", ""],
};
export const REQUEST_STATES = Object.keys(REQUEST);
export const ITEM_STATES = Object.keys(ITEM);

export function stateName(state) {
  return (REQUEST[state] ?? ITEM[state] ?? [state])[0];
}

export function hasEnded(request) {
  return !["resolving", "pending_approval", "active"].includes(request.state);
}

export function requestChip(request) {
  let [name, tone] = REQUEST[request.state] ?? [request.state, ""];
  if (!hasEnded(request) && request.cancelling) [name, tone] = ["Cancelling", "wait"];
  else if (!hasEnded(request) && request.paused) [name, tone] = [`${name}, paused`, "wait"];
  return h("span", { class: `chip ${tone}` }, name);
}

export function itemChip(state) {
  const [name, tone] = ITEM[state] ?? [state, ""];
  return h("span", { class: `chip ${tone}` }, name);
}

/** What a request is about, in a few words. */
export function what(spec) {
  const select = spec.select;
  if (select === "manifest") return "Uploaded list of files";
  if (select.dataset) return select.dataset;
  if (select.block) return select.block;
  if (select.prefix) return `${select.prefix}/…`;
  if (select.files) return select.files.length === 1 ? select.files[0] : plural(select.files.length, "file");
  return "?";
}

export function kind(spec) {
  const select = spec.select;
  if (select === "manifest") return "manifest";
  return Object.keys(select)[0];
}

export function from(spec) {
  return spec.source?.agents ? spec.source.agents.join(", ") : "any agent that has it";
}

export function short(id) {
  return `${id.slice(0, 4)}${id.slice(4, 12)}…${id.slice(-4)}`;
}
