// The list of requests.
import { get } from "./api.js";
import { bar, fill, h, linked, table } from "./dom.js";
import { placed, speed } from "./live.js";
import { REQUEST_STATES, bytes, count, hasEnded, kind, rate, requestChip, stateName, what, when } from "./words.js";

/** The bar of a request: what is done, moves, waits for tape, failed; with its numbers as text. */
export function progress(request, big = false) {
  const c = request.counters;
  const of = Math.max(1, c.files);
  const share = c.bytes > 0 ? placed(request) / c.bytes : (c.done + c.skipped) / of;
  const failed = c.failed / of;
  const hold = c.holding / of;
  const done = Math.min(c.done + c.skipped === c.files ? 1 : share + (c.skipped / of) * (c.bytes > 0 ? 1 : 0), 1 - failed);
  const label = `${count(c.done + c.skipped)} of ${count(c.files)} files, ${bytes(placed(request))} of ${bytes(c.bytes)}`;
  const tone = hasEnded(request) ? "good" : "run";
  return bar([[done, tone], [Math.min(hold, 1 - done - failed), "hold"], [failed, "bad"]], label, big);
}

export function mount(root, { params, go }) {
  let rows = [];
  let next = null;
  let shown = 50;
  const filter = Object.fromEntries(["state", "owner", "destination", "dataset", "label"].map((k) => [k, params.get(k) ?? ""]));
  const list = h("div", { class: "card" });

  const field = (name, label, width) => h("input", { name, size: width, placeholder: label, "aria-label": label, value: filter[name] });
  const state = h("select", { name: "state", "aria-label": "State" }, h("option", { value: "" }, "Any state"),
    REQUEST_STATES.map((s) => h("option", { value: s, selected: s === filter.state }, stateName(s))));
  const apply = (event) => {
    event?.preventDefault();
    const query = new URLSearchParams([...new FormData(form)].filter(([, v]) => v.trim()).map(([k, v]) => [k, v.trim()])).toString();
    go(query ? `#/requests?${query}` : "#/requests");
  };
  state.addEventListener("change", apply);
  const form = h("form", { class: "row push", onsubmit: apply }, state, field("dataset", "Dataset", 16), field("destination", "Destination", 12),
    field("owner", "Owner", 10), h("button", {}, "Filter"));
  fill(root, h("div", { class: "head" }, h("h1", {}, "Requests"), form), list);

  function draw() {
    const filtered = Object.values(filter).some(Boolean);
    const made = table(["Request", "State", ["Progress", "wide"], ["Files", "num"], ["Size", "num"], "To", "Owner", "Created"], rows.map((request) => {
      const c = request.counters;
      const bits = speed(request);
      const href = `#/requests/${request.id}`;
      return linked(href, [
        [h("div", {}, h("a", { href, class: "wrap" }, what(request.spec)),
          h("div", { class: "small dim" }, `${kind(request.spec)}, ${request.spec.model}`, request.spec.priority !== 3 ? `, priority ${request.spec.priority}` : null)), "name"],
        requestChip(request),
        h("div", { class: "stack" }, progress(request), bits ? h("span", { class: "small dim" }, rate(bits)) : null,
          c.holding && !hasEnded(request) ? h("span", { class: "small dim" }, `${count(c.holding)} on hold`) : null,
          c.failed ? h("span", { class: "small error" }, `${count(c.failed)} failed`) : null),
        [`${count(c.done + c.skipped)} / ${count(c.files)}`, "num"],
        [bytes(c.bytes), "num"],
        request.spec.destinations.join(", "),
        request.owner,
        when(request.created),
      ]);
    }), filtered ? "No request fits the filter." : "Nobody has asked for anything yet: see longhaul request create --help.");
    fill(list, made, next ? h("div", { class: "foot" }, h("button", { type: "button", onclick: more }, "Show more")) : null);
  }

  async function more() {
    shown += 50;
    await refresh();
  }

  async function refresh() {
    let found = [];
    let cursor;
    do {
      const page = await get("/v1/requests", { ...filter, limit: Math.min(shown - found.length, 200), cursor });
      found = found.concat(page.items);
      cursor = page.next;
    } while (cursor && found.length < shown);
    [rows, next] = [found, cursor];
    draw();
  }
  return { refresh, draw, wants: (event) => /^(request|item)\./.test(event.kind) };
}
