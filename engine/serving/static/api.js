// The videos API: requests with the API key, and event streams, which EventSource cannot send a key with.

let key = sessionStorage.getItem("key") ?? "";

export function setKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.param = error?.param ?? null;
    this.code = error?.code ?? null;
  }
}

async function send(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ApiError(response.status, body?.error);
}

export const getJson = async (path) => (await send(path)).json();
export const getBlob = async (path) => (await send(path)).blob();
export const remove = (id) => send(`/v1/videos/${id}`, { method: "DELETE" });

export async function create(values, file) {
  if (!file) {
    const headers = { "Content-Type": "application/json" };
    return (await send("/v1/videos", { method: "POST", headers, body: JSON.stringify(values) })).json();
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(values)) form.set(name, value);
  form.set("input_reference", file);
  return (await send("/v1/videos", { method: "POST", body: form })).json();
}

// Calls on(name, data) for each event until the stream ends.
export async function follow(id, signal, on) {
  const response = await send(`/v1/videos/${id}/events`, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
      if (fields.event) on(fields.event, JSON.parse(fields.data));
    }
  }
}
