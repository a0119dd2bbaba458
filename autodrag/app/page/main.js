// The page: finds its session again or opens a new one, and puts the parts together.

import "./advice.js";
import { json } from "./api.js";
import { connect } from "./edits.js";
import { whenEntering } from "./files.js";
import "./history.js";
import "./keys.js";
import { Live } from "./live.js";
import "./panel.js";
import { latest } from "./recent.js";
import { offer } from "./seeds.js";
import "./stage.js";
import { emit, on, setActivity, state } from "./state.js";

const SESSION = "autodrag-session"; // of this tab
const query = new URLSearchParams(location.search);
let release = () => {};

/** Open the session with a key, or a new one with the image of the address. */
async function enter(key) {
  try {
    const session = (key && (await known(key))) || (await json("POST", "sessions", wanted()));
    sessionStorage.setItem(SESSION, session.key);
    release();
    occupy(session.key, false);
    state.mask = null;
    connect(new Live(session.key));
  } catch (error) {
    setActivity("down", error.message);
    emit("problem", error.message);
  }
}

async function known(key) {
  try {
    return await json("GET", `sessions/${key}`);
  } catch (error) {
    if (error.status !== 404) throw error;
    emit("problem", "The server no longer has the session of this page. A new one is open.");
    return null;
  }
}

function wanted() {
  const seed = Number(query.get("seed") ?? 13);
  return { seed: Number.isInteger(seed) && seed >= 0 && seed < 2 ** 32 ? seed : 13 };
}

/** Hold a lock for a session while this page is open. Returns false if `free` is demanded and another tab holds it. */
function occupy(key, free) {
  if (!navigator.locks) return Promise.resolve(false); // the browser offers locks on secure addresses only
  return new Promise((resolve) => {
    navigator.locks.request(`autodrag-${key}`, { ifAvailable: free }, (lock) => {
      resolve(lock !== null);
      return lock && new Promise((done) => (release = done));
    });
  });
}

/** The session of this tab. A new tab continues the latest session, unless the address names a seed. */
async function own() {
  const key = sessionStorage.getItem(SESSION);
  if (key || query.has("seed")) return key;
  const last = latest();
  return last && (await occupy(last, true)) ? last : null;
}

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
  await enter(await own());
} catch (error) {
  setActivity("down", error.message);
}
window.autodrag = state; // for inspection
