// What moves right now, out of the events: bytes of items that are not done yet, and how fast a request gets on.

const moving = new Map();
const samples = new Map();
const WINDOW = 15000;

/** Takes an event into account. */
export function note(event) {
  const [thing, happened] = event.kind.split(".");
  if (thing !== "item" || !event.data?.item) return;
  const items = moving.get(event.subject) ?? new Map();
  if (happened === "progress") items.set(event.data.item, event.data.bytes);
  else if (["done", "skipped", "failed", "cancelled", "requeued", "hold"].includes(happened)) items.delete(event.data.item);
  if (items.size) moving.set(event.subject, items);
  else moving.delete(event.subject);
}

/** Everything that was gathered is of another session. */
export function forget() {
  moving.clear();
  samples.clear();
}

/** Bytes of a request that are placed: of items that are done, and of those on their way. */
export function placed(request) {
  let sum = request.counters.done_bytes;
  if (request.state === "active") for (const n of moving.get(request.id)?.values() ?? []) sum += n;
  return Math.min(sum, Math.max(request.counters.bytes, request.counters.done_bytes));
}

/** Bits per second over the last quarter of a minute, once two looks allow to say so. */
export function speed(request) {
  if (request.state !== "active") {
    samples.delete(request.id);
    return null;
  }
  const now = Date.now();
  const list = (samples.get(request.id) ?? []).filter(([at]) => now - at < WINDOW);
  list.push([now, placed(request)]);
  samples.set(request.id, list);
  const [[t0, b0]] = list;
  return now - t0 > 1500 ? Math.max(0, ((placed(request) - b0) * 8000) / (now - t0)) : null;
}
