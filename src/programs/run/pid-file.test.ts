import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { createRealHost } from '../../host/real.js';
import type { Host, HostFile } from '../../host/host.js';
import { scratch } from '../../../test/kit/program.js';
import { PidFile } from './pid-file.js';

/** A host that says what lies at a path when anything is written to a file. */
function watchedHost(path: string, seen: (text: string | undefined) => void): Host {
  const host = createRealHost();
  const look = (): void => seen(existsSync(path) ? readFileSync(path, 'utf8') : undefined);
  const watched = (file: HostFile): HostFile =>
    new Proxy(file, {
      get(target, key) {
        const value: unknown = Reflect.get(target, key);
        if (typeof value !== 'function') return value;
        look();
        return value.bind(target) as unknown;
      },
    });
  const files = new Proxy(host.files, {
    get(target, key) {
      const value: unknown = Reflect.get(target, key);
      if (key === 'open')
        return async (...args: Parameters<Host['files']['open']>) => watched(await target.open(...args));
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
  return { ...host, files };
}

test('a PID file has its number as soon as it is there, and leaves nothing else', async (t) => {
  const folder = scratch(t);
  const path = `${folder}/pid`;
  const seen = new Set<string | undefined>();
  const host = watchedHost(path, (text) => seen.add(text));
  const file = await PidFile.create(host, path, 4711);
  assert.ok(seen.has(undefined));
  assert.ok(
    [...seen].every((text) => text === undefined || text === '4711\n'),
    [...seen].join(),
  );
  assert.deepEqual(readdirSync(folder), ['pid']);
  assert.equal(readFileSync(path, 'utf8'), '4711\n');
  await file.remove();
  assert.deepEqual(readdirSync(folder), []);
});

test('an old PID file is written over, and a folder in its place is refused', async (t) => {
  const folder = scratch(t);
  writeFileSync(`${folder}/pid`, '123456789\n');
  const file = await PidFile.create(createRealHost(), `${folder}/pid`, 12);
  assert.equal(readFileSync(`${folder}/pid`, 'utf8'), '12\n');
  await file.remove();
  mkdirSync(`${folder}/pid`);
  await assert.rejects(
    PidFile.create(createRealHost(), `${folder}/pid`, 12),
    /^BlockError: cannot create PID file: /,
  );
  await assert.rejects(
    PidFile.create(createRealHost(), `${folder}/none/pid`, 12),
    /cannot create PID file: Could not create '.*none\/pid': No such file or directory/,
  );
});
