// Server-sent events over fetch, which sends the API key in a header.

export interface Message {
  event: string;
  data: string;
}

/** Takes the complete messages out of a text; returns them and the rest. */
export function parse(text: string): { messages: Message[]; rest: string } {
  const blocks = text.split("\n\n");
  const rest = blocks.pop() ?? "";
  const messages = blocks.flatMap((block) => {
    let event = "message";
    const data: string[] = [];
    for (const line of block.split("\n")) {
      if (line.startsWith("event:")) event = line.slice(6).trim();
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    }
    return data.length > 0 ? [{ event, data: data.join("\n") }] : [];
  });
  return { messages, rest };
}

/** Follows a stream until it ends or `signal` is aborted. */
export async function follow(
  url: string,
  headers: Record<string, string>,
  signal: AbortSignal,
  onBytes: () => void,
  onMessage: (message: Message) => void,
): Promise<Response> {
  const response = await fetch(url, { headers, signal, cache: "no-store" });
  if (!response.ok || !response.body) return response;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return response;
    onBytes();
    const { messages, rest } = parse(text + value);
    text = rest;
    messages.forEach(onMessage);
  }
}
