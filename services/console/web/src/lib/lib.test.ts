import { describe, expect, test } from "vitest";
import { ago, bytes, count, duration, percent } from "./format";
import { at, parse } from "./json";
import { parse as parseEvents } from "./sse";

describe("json", () => {
  test("numbers stay as they were written", () => {
    const node = parse('{"job": {"data": {"id": 12345678901234567890, "x": 1.10, "e": 1e400}}}');
    const data = at(node, "job", "data");
    expect(data).toEqual({
      kind: "object",
      entries: [
        ["id", { kind: "number", text: "12345678901234567890" }],
        ["x", { kind: "number", text: "1.10" }],
        ["e", { kind: "number", text: "1e400" }],
      ],
    });
  });

  test("texts, literals and nested values are read", () => {
    expect(parse(' [ "a\\u00e9\\"", true , null, [], {} ] ')).toEqual({
      kind: "array",
      items: [
        { kind: "string", value: 'aé"' },
        { kind: "literal", text: "true" },
        { kind: "literal", text: "null" },
        { kind: "array", items: [] },
        { kind: "object", entries: [] },
      ],
    });
  });

  test.each(["", "{", "[1,]", '{"a" 1}', "01", "nul", "1 2"])("%s is no JSON", (text) => {
    expect(() => parse(text)).toThrow(SyntaxError);
  });
});

test("events are taken out of a stream as they become complete", () => {
  const { messages, rest } = parseEvents(": no change\n\nevent: stats\ndata: {}\n\nevent: st");
  expect(messages).toEqual([{ event: "stats", data: "{}" }]);
  expect(rest).toBe("event: st");
});

test("quantities are shown for people", () => {
  expect(duration(999)).toBe("999 ms");
  expect(duration(61_000)).toBe("1 min 1 s");
  expect(duration(90_000_000)).toBe("25 h 0 min");
  expect(bytes(1_500)).toBe("1.5 KB");
  expect(percent(0.999)).toBe("99.90 %");
  expect(count(1, "job")).toBe("1 job");
  expect(ago("2026-11-27T00:00:00Z", Date.parse("2026-11-27T00:00:05Z"))).toBe("5.0 s ago");
});
