// Builds the bundles that are committed under labvoice/widgets/static; `--out DIR` builds elsewhere.
import { build } from "esbuild";
import { fileURLToPath } from "node:url";

const at = process.argv.indexOf("--out");
const here = (path) => fileURLToPath(new URL(path, import.meta.url));

await build({
  absWorkingDir: here("."),
  entryPoints: ["src/call.ts", "src/monitor.ts"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  loader: { ".css": "text" },
  outdir: at > 0 ? process.argv[at + 1] : here("../labvoice/widgets/static"),
});
