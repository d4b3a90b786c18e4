// Talking to the server. All addresses are relative to the page, so that it also works behind a proxy with a prefix.

const KEY = "weft.key";  // in sessionStorage: forgotten with the tab

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

/** What went wrong, in words for the user. `status` is 0 where no answer came at all. */
export class ApiError extends Error {
  constructor(status, message, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;  // seconds
  }
}

const WORDS = {
  401: "The server asks for an API key.",
  403: "The server refuses this.",
  404: "The server does not know this address.",
  413: "The message is larger than the server takes.",
  429: "The server is busy.",
  503: "The server is not ready.",
};

async function errorOf(response) {
  let message = "";
  try {
    const {error, message: plain, detail} = await response.json();
    message = error?.message ?? (typeof error === "string" ? error : null) ?? plain ?? detail ?? "";
  } catch {
    // Not JSON: a proxy's page, say. The status says enough.
  }
  const words = WORDS[response.status] ?? `The server answered ${response.status}.`;
  return new ApiError(response.status, message || words, Number(response.headers.get("retry-after")) || 0);
}

async function send(path, {body, signal} = {}) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (apiKey.get()) headers.authorization = `Bearer ${apiKey.get()}`;
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

export const getJson = async (path, options) => (await send(path, options)).json();

/** POSTs `body`; yields the JSON of each event of the stream. An error event is thrown as an ApiError. */
export async function* stream(path, body, signal) {
  const response = await send(path, {body, signal});
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (signal.aborted) throw new DOMException("stopped", "AbortError");
        throw new ApiError(0, "The connection broke before the answer was complete.");
      }
      if (part.done) throw new ApiError(0, "The connection ended before the answer was complete.");
      const lines = (rest + part.value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length) {
          const text = data.join("\n");
          data = [];
          if (text === "[DONE]") return;
          const event = JSON.parse(text);
          if (event.error) throw new ApiError(event.error.code | 0, event.error.message ?? "The answer broke off.");
          yield event;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
