// What can be done to a request, and by whom.
import { change, is, me } from "./api.js";
import { ask, h, toast } from "./dom.js";
import { bytes, hasEnded, plural, short, what } from "./words.js";

export function steers(request) {
  return is("operator") || (is("submitter", "agent") && request.owner === me().name);
}

function about(request) {
  const c = request.counters;
  return [h("p", { class: "wrap" }, h("b", {}, what(request.spec))),
    h("p", { class: "dim wrap" }, `${plural(c.files, "file")}, ${bytes(c.bytes)}, to ${request.spec.destinations.join(", ")}; asked for by ${request.owner}.`)];
}

/** Does it, says what came of it, and looks again in any case. */
async function doing(button, work, then) {
  button.disabled = true;
  try {
    toast(await work(), "good");
  } catch (error) {
    toast(error.message, "bad");
  }
  button.disabled = false;
  await then();
}

function button(text, style, work, then) {
  const made = h("button", { type: "button", class: style, onclick: () => doing(made, work, then) }, text);
  return made;
}

function asking(text, style, question, work, then) {
  const made = h("button", { type: "button", class: style, onclick: async () => {
    const comment = await ask(question());
    if (comment !== null) await doing(made, () => work(comment), then);
  } }, text);
  return made;
}

/** Yes and no to exactly what is shown: its version and the digest of what was resolved go along. */
export function decisions(request, then) {
  if (request.state !== "pending_approval" || !is("approver")) return [];
  const decide = (decision, said) => async (comment) => {
    const body = { decision, digest: request.digest, comment: comment || null };
    await change("POST", `/v1/requests/${request.id}/approval`, body, { "if-match": `"${request.version}"` });
    return `${said} ${what(request.spec)}`;
  };
  const question = (title, button, danger) => () => ({ title, button, danger, comment: true, text: about(request) });
  return [
    asking("Approve", "main", question("Approve this request?", "Approve", false), decide("approve", "Approved"), then),
    asking("Reject", "danger", question("Reject this request?", "Reject", true), decide("reject", "Rejected"), then),
  ];
}

/** Everything else that is possible now. */
export function steering(request, then, gone) {
  if (!steers(request)) return [];
  const act = (action, said) => async () => {
    await change("POST", `/v1/requests/${request.id}/${action}`);
    return `${said}: ${what(request.spec)}`;
  };
  const out = [];
  if (!hasEnded(request)) {
    if (request.state === "active" && !request.cancelling) {
      out.push(request.paused ? button("Resume", "", act("resume", "Goes on"), then) : button("Pause", "", act("pause", "Paused"), then));
    }
    if (!request.cancelling) {
      const question = () => ({ title: "Cancel this request?", button: "Cancel the request", danger: true, text: [about(request), h("p", { class: "dim" }, "Files that have arrived stay where they are.")] });
      out.push(asking("Cancel", "danger", question, act("cancel", "Cancelled"), then));
    }
    return out;
  }
  if (request.counters.failed > 0 && ["partial", "failed", "expired"].includes(request.state)) out.push(button("Try failed files again", "", act("retry-failed", "Tried again"), then));
  const question = () => ({ title: "Delete this request?", button: "Delete", danger: true, text: [about(request), h("p", { class: "dim" }, "Main forgets it and its history. No file is touched.")] });
  const remove = async () => {
    await change("DELETE", `/v1/requests/${request.id}`);
    return `Deleted ${short(request.id)}`;
  };
  out.push(asking("Delete", "danger", question, remove, gone ?? then));
  return out;
}
