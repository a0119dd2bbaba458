// The WebSocket of a session. Only the newest position of a pull is sent, at most once per animation frame.

import { pixels } from "./api.js";
import { emit } from "./state.js";

const MISSING = 4404; // close codes of the server: there is no such session,
const UNUSED = 4408; // or it was not used for long and is now only on disk
const KINDS = { 137: "image/png", 255: "image/jpeg" };

export class Live {
  #socket = null;
  #key;
  #closed = false;
  #wait = 500;
  #next = null; // message for the next animation frame
  #decoding = Promise.resolve();
  #waiting = 0;

  constructor(key) {
    this.#key = key;
    this.#connect();
  }

  /** At the next animation frame; a newer pull takes its place. */
  pull(number, edit) {
    if (this.#next === null) requestAnimationFrame(() => this.#flush());
    this.#next = { type: "pull", pull: number, edit };
  }

  /** Returns whether it was sent. */
  drag(number, edit) {
    this.#next = null;
    return this.#send({ type: "drag", pull: number, edit });
  }

  stop() {
    this.#next = null;
    this.#send({ type: "stop" });
  }

  close() {
    this.#closed = true;
    this.#socket?.close();
  }

  #flush() {
    if (this.#next !== null) this.#send(this.#next);
    this.#next = null;
  }

  #send(message) {
    const open = this.#socket?.readyState === WebSocket.OPEN;
    if (open) this.#socket.send(JSON.stringify(message));
    else emit("problem", "The connection is down. Wait until the page is connected again.");
    return open;
  }

  #wake = () => {
    if (!this.#closed && this.#socket.readyState === WebSocket.CLOSED) this.#connect();
  };

  #connect() {
    const address = new URL(`api/sessions/${this.#key}/live`, document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = (this.#socket = new WebSocket(address));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.#wait = 500;
    };
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => {
      if (this.#closed) return;
      if (code === MISSING) return emit("gone", reason);
      if (code === 1007 || code === 1008) emit("problem", reason);
      if (code === UNUSED) {
        emit("offline", "Paused. Press a key or click to continue.");
        for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, this.#wake, { once: true });
        return;
      }
      emit("offline");
      setTimeout(this.#wake, this.#wait);
      this.#wait = Math.min(8000, this.#wait * 2);
    };
  }

  #receive(data) {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      this.#decoding = this.#decoding.then(() => emit(message.type === "error" ? "error" : "heard", message));
      return;
    }
    const length = new DataView(data).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    const bytes = new Uint8Array(data, 4 + length);
    const final = header.type === "state";
    if (!final && this.#waiting > 2) return; // this page is slower than the server; a newer frame follows
    this.#waiting += 1;
    this.#decoding = this.#decoding
      .then(async () => {
        const image = await pixels(new Blob([bytes], { type: KINDS[bytes[0]] }));
        emit(header.type, { ...header, image });
      })
      .catch((error) => emit("problem", `A frame could not be shown: ${error.message}`))
      .finally(() => {
        this.#waiting -= 1;
      });
  }
}
