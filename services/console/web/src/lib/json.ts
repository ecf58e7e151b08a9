// JSON as a tree that keeps every number as it was written: a double would round a large id.

export type Node =
  | { kind: "object"; entries: [string, Node][] }
  | { kind: "array"; items: Node[] }
  | { kind: "string"; value: string }
  | { kind: "number"; text: string }
  | { kind: "literal"; text: "true" | "false" | "null" };

const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const STRING = /"(?:[^"\\]|\\.)*"/y;
const SPACE = /[ \t\r\n]*/y;

/** Reads a JSON text. Throws a `SyntaxError` if it is none. */
export function parse(text: string): Node {
  let at = 0;
  const skip = () => {
    SPACE.lastIndex = at;
    SPACE.test(text);
    at = SPACE.lastIndex;
  };
  const fail = (): never => {
    throw new SyntaxError(`no JSON at character ${at}`);
  };
  const match = (pattern: RegExp): string => {
    pattern.lastIndex = at;
    const found = pattern.exec(text)?.[0];
    if (found === undefined) return fail();
    at += found.length;
    return found;
  };
  const take = (character: string): boolean => {
    skip();
    if (text[at] !== character) return false;
    at += 1;
    return true;
  };
  const string = () => JSON.parse(match(STRING)) as string;
  const value = (): Node => {
    skip();
    const next = text[at];
    if (next === "{") {
      at += 1;
      const entries: [string, Node][] = [];
      if (take("}")) return { kind: "object", entries };
      do {
        skip();
        const name = string();
        if (!take(":")) fail();
        entries.push([name, value()]);
      } while (take(","));
      if (!take("}")) fail();
      return { kind: "object", entries };
    }
    if (next === "[") {
      at += 1;
      const items: Node[] = [];
      if (take("]")) return { kind: "array", items };
      do items.push(value());
      while (take(","));
      if (!take("]")) fail();
      return { kind: "array", items };
    }
    if (next === '"') return { kind: "string", value: string() };
    for (const literal of ["true", "false", "null"] as const) {
      if (text.startsWith(literal, at)) {
        at += literal.length;
        return { kind: "literal", text: literal };
      }
    }
    return { kind: "number", text: match(NUMBER) };
  };
  const node = value();
  skip();
  return at === text.length ? node : fail();
}

/** The value of a field of an object, at a path of names. */
export function at(node: Node, ...names: string[]): Node | undefined {
  return names.reduce<Node | undefined>(
    (found, name) => (found?.kind === "object" ? found.entries.find(([key]) => key === name)?.[1] : undefined),
    node,
  );
}
