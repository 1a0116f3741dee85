import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { scratch } from './library-bed.js';

test('the example of the README does what the README says', (t) => {
  const folder = scratch(t);
  const readme = readFileSync('README.md', 'utf8');
  const [, file = '', code = '', output = ''] =
    /```js (\S+)\n([^]*?)```\n\n```text\n([^]*?)```/.exec(readme) ?? [];
  const library = pathToFileURL('src/index.ts').href;
  writeFileSync(join(folder, file), code.replace("from 'livedisk'", `from '${library}'`));
  const loader = import.meta.resolve('tsx');
  const done = spawnSync(process.execPath, ['--import', loader, file], { cwd: folder, encoding: 'utf8' });
  assert.equal(done.stdout, output, done.stderr);
});
