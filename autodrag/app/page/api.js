// Requests over HTTP. A refusal of the server is one sentence, which is thrown as an Error and shown to the user.

const SMALL = 30_000; // bytes; browsers finish the requests of a closed page if their bodies are small

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export async function call(method, path, body, type = "application/json") {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["content-type"] = type;
    options.body = type === "application/json" && !(body instanceof Blob) ? JSON.stringify(body) : body;
  }
  const chosen = body instanceof File; // Chromium refuses to keep the upload of a chosen file alive
  options.keepalive = !chosen && (options.body?.size ?? options.body?.length ?? 0) < SMALL && method !== "GET";
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch {
    throw new Refused(0, "The server cannot be reached.");
  }
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Refused(response.status, sentence(problem.detail ?? `The server answered ${response.status}.`));
  }
  return response;
}

export const json = async (...request) => (await call(...request)).json();

export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** The pixels of an encoded image as a canvas of its own size. */
export async function pixels(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas;
}
