// The approval board: what waits for somebody's yes, and what was refused or ended without being done.
import { get, is } from "./api.js";
import { decisions, steering } from "./actions.js";
import { fill, facts, h, table } from "./dom.js";
import { bytes, count, from, kind, requestChip, what, when } from "./words.js";

export function mount(root) {
  let waiting = [];
  let over = [];
  const body = h("div", { class: "stack" });
  fill(root, h("div", { class: "head" }, h("h1", {}, "Approval")), body);

  function card(request) {
    const buttons = [...decisions(request, refresh), ...steering(request, refresh)];
    return h("article", { class: "card pad stack" },
      h("div", { class: "head" },
        h("div", {}, h("h2", { class: "wrap" }, h("a", { href: `#/requests/${request.id}` }, what(request.spec))),
          h("p", { class: "small dim" }, `${kind(request.spec)}, asked for by ${request.owner}, `, when(request.created))),
        h("div", { class: "row push" }, buttons)),
      request.spec.comment ? h("p", { class: "note" }, request.spec.comment) : null,
      h("div", { class: "two" },
        facts([["Size", `${bytes(request.counters.bytes)} in ${count(request.counters.files)} files`], ["From", from(request.spec)],
          ["To", `${request.spec.destinations.join(", ")}${request.spec.path ? `, below ${request.spec.path}` : ""}`]]),
        facts([["Why it waits", request.reason ?? "–"], ["Digest", h("code", {}, request.digest ?? "–")]])));
  }

  function draw() {
    fill(body,
      is("approver") ? null : h("p", { class: "note" }, "Your token has no role approver: you can look, but not decide."),
      waiting.length ? waiting.map(card) : h("div", { class: "card" }, h("p", { class: "empty" }, "Nothing waits for approval.")),
      over.length ? [h("h2", {}, "Rejected, expired and cancelled"), h("div", { class: "card" },
        table(["Request", "State", "Why", "Owner", "Ended", ""], over.map((request) => {
          const last = (request.decisions ?? []).at(-1);
          const why = last?.comment ? `${last.by}: ${last.comment}` : last ? `by ${last.by}` : request.reason ?? "";
          return [[h("a", { href: `#/requests/${request.id}`, class: "wrap" }, what(request.spec)), "name"], requestChip(request), [why, "wrap"], request.owner,
            when(request.ended ?? request.changed), [h("div", { class: "row" }, steering(request, refresh)), "num"]];
        }), ""))] : null);
  }

  async function refresh() {
    const states = ["pending_approval", "rejected", "expired", "cancelled"];
    const pages = await Promise.all(states.map((state) => get("/v1/requests", { state, limit: state === "pending_approval" ? 200 : 20 })));
    waiting = pages[0].items.reverse();
    const time = (request) => request.ended ?? request.changed;
    over = pages.slice(1).flatMap((page) => page.items).sort((a, b) => (time(a) < time(b) ? 1 : -1));
    draw();
  }
  return { refresh, draw, wants: (event) => event.kind.startsWith("request.") };
}
