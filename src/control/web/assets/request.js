// One request in depth.
import { get } from "./api.js";
import { decisions, steering } from "./actions.js";
import { fill, facts, h, table } from "./dom.js";
import { note, placed, speed } from "./live.js";
import { progress } from "./requests.js";
import { ITEM_STATES, bytes, count, from, hasEnded, itemChip, kind, rate, requestChip, span, stateName, what, when } from "./words.js";

const EXISTS = { prove: "skipped if it is proved equal, an error otherwise", error: "an error", skip: "left as it is", replace: "replaced" };

function legend(request) {
  const c = request.counters;
  const part = (n, name, tone) => (n ? h("span", { class: `chip ${tone}` }, h("span", {}, h("b", {}, count(n)), ` ${name}`)) : null);
  const bits = speed(request);
  const left = bits ? ((c.bytes - placed(request)) * 8) / bits : null;
  return h("div", { class: "legend" },
    h("span", {}, h("b", {}, bytes(placed(request))), ` of ${bytes(c.bytes)}`),
    part(c.done, "done", "good"), part(c.skipped, "were there already", "good"), part(c.running, "running", "run"),
    part(c.holding, "on hold", "hold"), part(c.queued, "queued", ""), part(c.failed, "failed", "bad"), part(c.cancelled, "cancelled", ""),
    bits ? h("span", {}, h("b", {}, rate(bits)), left && left > 1 ? `, ${span(left)} left` : null) : null);
}

function history(request) {
  const lines = request.decisions ?? [];
  if (!lines.length) return null;
  return h("div", { class: "stack" }, lines.map((d) => h("div", { class: `note ${d.decision === "approve" ? "good" : "bad"}` },
    h("b", {}, d.decision === "approve" ? "Approved" : "Rejected"), ` by ${d.by}, `, when(d.at), d.comment ? h("div", {}, d.comment) : null)));
}

function detail(request) {
  const s = request.spec;
  const labels = Object.entries(s.labels ?? {});
  return h("div", { class: "two" },
    facts([
      ["From", from(s)],
      ["To", `${s.destinations.join(", ")}${s.path ? `, below ${s.path}` : ""}`],
      ["Model", s.model],
      ["Priority", String(s.priority)],
      ["If a file exists", EXISTS[s.if_exists] ?? s.if_exists],
      s.verify ? ["Verified on", s.verify] : null,
      s.max_rate ? ["At most", rate(s.max_rate)] : null,
    ]),
    facts([
      ["Asked for by", request.owner],
      ["Created", when(request.created)],
      request.ended ? ["Ended", when(request.ended)] : ["Changed", when(request.changed)],
      s.not_before ? ["Not before", when(s.not_before)] : null,
      s.deadline ? ["Deadline", when(s.deadline)] : null,
      labels.length ? ["Labels", h("span", { class: "row" }, labels.map(([k, v]) => h("span", { class: "tag" }, `${k}=${v}`)))] : null,
      request.digest ? ["Digest", h("code", {}, request.digest)] : null,
      ["Id", h("code", {}, request.id)],
    ]));
}

export function mount(root, { rest, go }) {
  const id = rest[0];
  let request = null;
  let items = [];
  let next = null;
  let shown = 50;
  let state = "";
  const open = new Map();
  const top = h("div", { class: "stack" });
  const list = h("div", {});
  const choose = h("select", { id: "item-state", "aria-label": "State", onchange: () => { state = choose.value; shown = 50; refresh(); } },
    h("option", { value: "" }, "All states"), ITEM_STATES.map((s) => h("option", { value: s }, stateName(s))));
  fill(root, top, h("div", { class: "card" }, h("div", { class: "head pad" }, h("h2", {}, "Files"), h("span", { class: "push" }, choose)), list));

  function rows(item) {
    const tries = open.get(item.id);
    const toggle = async () => {
      if (open.has(item.id)) open.delete(item.id);
      else open.set(item.id, await get(`/v1/items/${item.id}/attempts`));
      draw();
    };
    const share = item.bytes ? `${Math.floor((100 * item.progress) / item.bytes)} %` : bytes(item.progress);
    const live = ["claimed", "transferring", "verifying", "committing"].includes(item.state);
    const cells = [
      [h("div", {}, h("span", {}, item.lfn), item.path === item.lfn ? null : h("div", { class: "small dim wrap" }, `as ${item.path}`),
        item.reason && item.state !== "done" ? h("div", { class: `small wrap ${item.state === "failed" ? "error" : "dim"}` }, item.reason) : null), "name"],
      [h("div", {}, itemChip(item.state), live ? h("div", { class: "small dim" }, share) : null,
        item.state === "queued" && item.not_before ? h("div", { class: "small dim" }, "next try ", when(item.not_before)) : null,
        item.state === "hold" ? h("div", { class: "small dim" }, "since ", when(item.hold_since)) : null), "tight"],
      [bytes(item.bytes), "num"],
      item.source ?? h("span", { class: "dim" }, "–"),
      item.destination,
      [count(item.tries), "num"],
      when(item.changed),
      [h("button", { type: "button", id: `tries-${item.id}`, class: "plain", "aria-expanded": String(open.has(item.id)), onclick: toggle }, open.has(item.id) ? "Hide history" : "History"), "num"],
    ];
    const row = h("tr", { class: tries ? "open" : null }, cells.map((c) => (Array.isArray(c) ? h("td", { class: c[1] }, c[0]) : h("td", {}, c))));
    return tries ? [row, h("tr", {}, h("td", { colspan: 8 }, attempts(item, tries)))] : [row];
  }

  function attempts(item, tries) {
    return h("div", { class: "stack" },
      item.digest ? h("p", { class: "small" }, h("span", { class: "dim" }, "Digest "), h("code", {}, item.digest)) : null,
      table(["Try", "At", "From", "Began", "Took", "Outcome", ["Moved", "num"], "Reason"], tries.map((t) => [
        count(t.epoch), t.agent, t.source, when(t.started),
        t.ended ? span((new Date(t.ended) - new Date(t.started)) / 1000) : "still runs",
        [t.outcome ? `${t.outcome}${t.class ? ` (${t.class.replace("_", " ")})` : ""}` : "–", "tight"],
        [bytes(t.bytes), "num"], [t.reason ?? "", "name"],
      ]), "Nobody has begun it yet."));
  }

  function draw() {
    if (!request) return;
    const gone = async () => go("#/requests");
    fill(top,
      h("div", { class: "crumbs" }, h("a", { href: "#/requests" }, "Requests"), h("span", {}, kind(request.spec))),
      h("div", { class: "head" }, h("h1", {}, what(request.spec)), requestChip(request),
        h("div", { class: "row push" }, decisions(request, refresh), steering(request, refresh, gone))),
      h("div", { class: "card pad stack" },
        request.reason ? h("p", { class: `note ${request.state === "pending_approval" ? "wait" : hasEnded(request) && request.state !== "succeeded" ? "bad" : ""}` }, request.reason) : null,
        request.spec.comment ? h("p", { class: "note" }, request.spec.comment) : null,
        request.counters.files ? [progress(request, true), legend(request)] : h("p", { class: "dim" }, request.state === "resolving" ? "Its files are being found." : "It has no files."),
        detail(request), history(request)));
    fill(list, table(["File", "State", ["Size", "num"], "From", "To", ["Failed tries", "num"], "Changed", ""], items.flatMap(rows),
      state ? "No file is in that state." : "No files yet."),
    next ? h("div", { class: "foot" }, h("button", { type: "button", onclick: () => { shown += 100; refresh(); } }, "Show more")) : null);
  }

  async function refresh() {
    request = await get(`/v1/requests/${id}`);
    let found = [];
    let cursor;
    do {
      const page = await get(`/v1/requests/${id}/items`, { state, limit: Math.min(shown - found.length, 200), cursor });
      found = found.concat(page.items);
      cursor = page.next;
    } while (cursor && found.length < shown);
    [items, next] = [found, cursor];
    // Events tell of progress from now on; this is where it stands.
    for (const item of items) {
      if (["transferring", "verifying", "committing"].includes(item.state)) note({ kind: "item.progress", subject: id, data: { item: item.id, bytes: item.progress } });
    }
    const here = new Set(items.map((item) => item.id));
    for (const item of [...open.keys()]) {
      if (here.has(item)) open.set(item, await get(`/v1/items/${item}/attempts`));
    }
    draw();
  }
  return { refresh, draw, wants: (event) => event.subject === id };
}
