import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

/** Writes a compressed copy beside each file that it makes smaller. */
function compress(): Plugin {
  return {
    name: "compress",
    apply: "build",
    writeBundle({ dir = "dist" }) {
      for (const name of readdirSync(dir, { recursive: true, encoding: "utf8" })) {
        if (!/\.(css|html|js|svg)$/.test(name)) continue;
        const content = readFileSync(join(dir, name));
        const packed = gzipSync(content, { level: 9 });
        if (packed.length < content.length) writeFileSync(join(dir, `${name}.gz`), packed);
      }
    },
  };
}

export default defineConfig({
  // Links are relative, so that the console works under any path of a proxy.
  base: "./",
  plugins: [compress()],
  // `npm run dev` shows changes at once, with the data of a mesh that was started with
  // `jobmesh dev --allow-origin http://localhost:5173`.
  server: {
    proxy: Object.fromEntries(
      ["/api", "/docs", "/readyz"].map((path) => [path, { target: "http://127.0.0.1:8080", changeOrigin: true }]),
    ),
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    target: "es2022",
    assetsDir: "assets",
    // A script or style inside the page would need a weaker content security policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
});
