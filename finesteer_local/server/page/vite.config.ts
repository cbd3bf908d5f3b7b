import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const PAGE = import.meta.dirname;
const STATIC = join(PAGE, "..", "static");
const SOURCES = ["index.html", "package-lock.json", "package.json", "public", "src", "tsconfig.json", "vite.config.ts"];

function filesBelow(path: string): string[] {
  try {
    return readdirSync(path).flatMap((name) => filesBelow(join(path, name)));
  } catch {
    return [path];
  }
}

/** SHA-256 over names and contents; tests/test_page_build.py computes the same. */
function digest(root: string, paths: string[]): string {
  const hash = createHash("sha256");
  const names = paths.flatMap((path) => filesBelow(join(root, path))).map((path) => relative(root, path));
  for (const name of names.sort()) {
    const text = readFileSync(join(root, name), "utf8").replaceAll("\r\n", "\n");
    hash.update(`${name.replaceAll("\\", "/")}\0${text}\0`);
  }
  return hash.digest("hex");
}

/** Names of built files never change, so their address carries the version: no browser shows an old page. */
function versioned(): Plugin {
  const version = digest(PAGE, SOURCES);
  return {
    name: "versioned",
    transformIndexHtml: (html) => html.replaceAll(/\/static\/[\w.]+/g, (path) => `${path}?v=${version.slice(0, 12)}`),
    closeBundle() {
      const built = readdirSync(STATIC).filter((name) => name !== "build.json");
      const manifest = { sources: version, built: digest(STATIC, built) };
      writeFileSync(join(STATIC, "build.json"), `${JSON.stringify(manifest, null, 2)}\n`);
    },
  };
}

/** The terms of what is in the bundle, which travel with it. */
function licences(): Plugin {
  return {
    name: "licences",
    generateBundle(_, bundle) {
      const modules = Object.values(bundle).flatMap((file) => (file.type === "chunk" ? Object.keys(file.modules) : []));
      const folders = modules.map((id) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(id.replaceAll("\\", "/"))?.[0]);
      const texts = [...new Set(folders.filter((folder) => folder !== undefined))].sort().map((folder) => {
        const { name, version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
        const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
        return `${name} ${version} (${license})\n\n${file ? readFileSync(join(folder, file), "utf8").trim() : ""}\n`;
      });
      this.emitFile({ type: "asset", fileName: "licenses.txt", source: texts.join("\n\n") });
    },
  };
}

export default defineConfig({
  base: "/static/",
  plugins: [licences(), versioned()],
  build: {
    outDir: STATIC,
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    rollupOptions: {
      output: {
        entryFileNames: "page.js",
        assetFileNames: "page[extname]",
        codeSplitting: false,
      },
    },
  },
});
