// Who works for this main, and how they are.
import { change, get, is } from "./api.js";
import { bar, fill, h, table, toast } from "./dom.js";
import { bytes, count, rate, when } from "./words.js";

function space(status) {
  if (!status.total_bytes) return h("span", { class: "dim" }, "–");
  const used = 1 - status.free_bytes / status.total_bytes;
  return h("div", { class: "stack" }, bar([[used, used > 0.95 ? "bad" : used > 0.85 ? "wait" : ""]], `${Math.round(used * 100)} % used`),
    h("span", { class: "small dim tight" }, `${bytes(status.free_bytes)} free of ${bytes(status.total_bytes)}`));
}

export function mount(root) {
  let agents = [];
  const body = h("div", { class: "card" });
  const title = h("span", { class: "dim" });
  fill(root, h("div", { class: "head" }, h("h1", {}, "Agents"), title), body);

  function drain(agent) {
    if (!is("operator")) return null;
    const made = h("button", { type: "button", title: "A draining agent ends what it has and is given nothing new", onclick: async () => {
      made.disabled = true;
      try {
        await change("POST", `/v1/agents/${encodeURIComponent(agent.registration.name)}/drain`, { draining: !agent.draining });
      } catch (error) {
        toast(error.message, "bad");
      }
      await refresh();
    } }, agent.draining ? "Take work again" : "Drain");
    return made;
  }

  function draw() {
    const alive = agents.filter((agent) => agent.alive).length;
    fill(title, agents.length ? `${count(alive)} of ${count(agents.length)} alive` : "");
    fill(body, table(["Agent", "State", "Work", ["In", "num"], ["Out", "num"], "Space", ["Load", "num"], "Last heard", ""], agents.map((agent) => {
      const { registration: r, status: s } = agent;
      const chip = !agent.alive ? h("span", { class: "chip bad" }, "Lost") : agent.draining ? h("span", { class: "chip wait" }, "Draining") : h("span", { class: "chip good" }, "Alive");
      return [
        [h("div", {}, h("b", {}, r.name), h("div", { class: "small dim wrap" }, [r.roles.join(", "), r.site, r.storage ? `storage ${r.storage}` : null].filter(Boolean).join(" · ")),
          h("div", { class: "small dim wrap" }, `${r.url} · ${r.version}`)), "name"],
        chip,
        [h("div", {}, h("div", {}, `${count(agent.items)} items`), h("div", { class: "small dim" }, `${count(s.running)} moving, ${count(s.holding)} on hold, ${count(s.queued)} queued`)), "tight"],
        [rate(s.in_bps), "num"], [rate(s.out_bps), "num"], space(s), [s.load.toFixed(2), "num"], when(agent.seen), [drain(agent), "num"],
      ];
    }), "No agent has registered yet: start one with longhaul agent --main."));
  }

  async function refresh() {
    agents = await get("/v1/agents");
    draw();
  }
  return { refresh, draw, wants: (event) => event.kind.startsWith("agent."), every: 10 };
}
