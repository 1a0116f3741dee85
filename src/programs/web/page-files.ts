import { readFileSync } from 'node:fs';
import { dirname, extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BlockError } from '../../base/error.js';
import type { PageFiles } from '../../web/server.js';

/** Where scripts/build.mjs puts the page, seen from the program. */
declare const PAGE_FOLDER: string | undefined;

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
};
const NAMES = ['index.html', 'page.js', 'page.css'];

/** The page as it was built. Errors: not-found when it was not. */
export function readPage(): PageFiles {
  const here = import.meta.url.startsWith('file:') ? fileURLToPath(import.meta.url) : import.meta.url;
  const folder = join(dirname(here), typeof PAGE_FOLDER === 'undefined' ? '../../../dist/page' : PAGE_FOLDER);
  try {
    return new Map(
      NAMES.map((name) => [
        `/${name}`,
        { type: TYPES[extname(name)] ?? 'text/plain', body: readFileSync(join(folder, name)) },
      ]),
    );
  } catch (error) {
    throw new BlockError('not-found', 'the page was not built: npm run build', { cause: error });
  }
}
