import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { test } from 'node:test';

const ROOT = resolve(import.meta.dirname, '../..');
const isBuilt = existsSync(join(ROOT, 'dist/types/index.d.ts'));
const skip = isBuilt ? false : 'not built: dist/ (npm run build)';

/** Runs Node in the package, where its own name can be imported. */
function node(script: string): string {
  const result = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    cwd: ROOT,
    encoding: 'utf8',
  });
  assert.equal(result.status, 0, result.stderr);
  return result.stdout;
}

test('each entry of the package can be imported', { skip }, () => {
  const { exports } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { exports: object };
  const names = Object.keys(exports).map((path) => path.replace('.', 'livedisk'));
  assert.deepEqual(names, ['livedisk', 'livedisk/block', 'livedisk/nbd', 'livedisk/qmp']);
  for (const name of names)
    assert.notEqual(node(`console.log(Object.keys(await import('${name}')).join())`).trim(), '');
});

test("the library manual's examples compile against the declarations", { skip }, (t) => {
  const manual = readFileSync(join(ROOT, 'docs/LIBRARY.md'), 'utf8');
  const examples = [...manual.matchAll(/```ts\n([^]*?)```/g)].map(([, code]) => code);
  assert.equal(examples.length, 2);
  // Inside the package, so that its own name resolves through "exports".
  const folder = mkdtempSync(join(ROOT, 'dist/example-'));
  t.after(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, 'example.ts'), examples.join('\n'));
  const options = ['--noEmit', '--strict', '--target', 'es2023', '--module', 'nodenext', '--types', 'node'];
  const result = spawnSync('npx', ['tsc', '--ignoreConfig', ...options, join(folder, 'example.ts')], {
    cwd: ROOT,
    encoding: 'utf8',
  });
  assert.equal(result.status, 0, result.stdout);
});

test("the library manual's first example runs", { skip }, (t) => {
  const folder = mkdtempSync(join(ROOT, 'dist/example-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const output = node(`
    import { allDrivers, createRealHost, Engine } from 'livedisk';
    process.chdir(${JSON.stringify(folder)});
    const engine = new Engine({ host: createRealHost(), drivers: allDrivers, kind: 'storage-daemon' });
    const file = { driver: 'file', filename: 'disk.qcow2' };
    for (const [id, options] of [
      ['f', { ...file, size: 0 }],
      ['q', { driver: 'qcow2', file, size: 1048576 }],
    ]) {
      await engine.execute('blockdev-create', { 'job-id': id, options });
      await engine.jobs.find(id).concluded;
    }
    await engine.addNode({ driver: 'qcow2', 'node-name': 'disk', file });
    await engine.addDevice('disk', { id: 'vda', endpoint: { type: 'unix', path: 'vda.sock' } });
    await engine.execute('blockdev-snapshot-sync', {
      'node-name': 'disk', 'snapshot-file': 'overlay.qcow2', 'snapshot-node-name': 'overlay',
    });
    await engine.execute('block-stream', { device: 'overlay', 'job-id': 'job0' });
    await engine.jobs.find('job0')?.concluded;
    console.log(engine.devices.get('vda').backend.node.name);
    await engine.close();
  `);
  assert.equal(output, 'overlay\n');
});
