// The page: finds its session again or makes one, and puts the parts together.

import { json } from "./api.js";
import { connect } from "./edits.js";
import { whenEntering } from "./files.js";
import "./history.js";
import { Live } from "./live.js";
import "./panel.js";
import { offer } from "./seeds.js";
import "./stage.js";
import { emit, on, setActivity, state } from "./state.js";

const SESSION = "autodrag-session";
let greeted = false;

/** The session of a key, or a new one with the image that the address asks for. */
async function enter(key) {
  setActivity("work", "Opening");
  try {
    const session = (key && (await known(key))) || (await json("POST", "sessions", wanted()));
    sessionStorage.setItem(SESSION, session.key);
    state.mask = null;
    greeted = false; // the page is open for work when its image has come
    connect(new Live(session.key));
  } catch (error) {
    setActivity("off", error.message);
    emit("problem", error.message);
  }
}

async function known(key) {
  try {
    return await json("GET", `sessions/${key}`);
  } catch (error) {
    if (error.status !== 404) throw error;
    emit("problem", "The session was dropped; a new one is open.");
    return null;
  }
}

function wanted() {
  const query = new URLSearchParams(location.search);
  const seed = Number(query.get("seed") ?? 13);
  return { seed: Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32 ? seed : 13 };
}

on("session", () => {
  if (!greeted) emit("idle");
  greeted = true;
});
on("gone", async (reason) => {
  emit("problem", `${reason}. A new session is open.`);
  sessionStorage.removeItem(SESSION);
  await enter(null);
});

whenEntering(enter);
try {
  const about = await json("GET", "about");
  state.limits = about;
  offer(about.checkpoints);
  await enter(sessionStorage.getItem(SESSION));
} catch (error) {
  setActivity("off", error.message);
}
window.autodrag = state; // for those who look behind the page
