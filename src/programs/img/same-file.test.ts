import assert from 'node:assert/strict';
import { linkSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { allDrivers } from '../../drivers/index.js';
import type { Host } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';
import { hostWithout } from '../../../test/kit/host-variants.js';
import { withFolder } from '../../../test/kit/test-disk.js';
import { type ToolAnswer, toolAnswer } from '../../../test/kit/tool-answer.js';
import { imgMain } from './main.js';

const KiB = 1024;
const MiB = 1024 * KiB;

function img(args: readonly string[], host = createRealHost()): Promise<ToolAnswer> {
  return toolAnswer((out) => imgMain(args, out, host, allDrivers));
}

async function succeed(args: readonly string[], host = createRealHost()): Promise<void> {
  const { code, stdout, stderr } = await img(args, host);
  assert.equal(code, 0, `${args.join(' ')}: ${stdout}${stderr}`);
}

/** A raw image `raw`, two more names of it, overlays of it, and a qcow2 copy of it. */
async function images(folder: string): Promise<(name: string) => string> {
  const path = (name: string): string => join(folder, name);
  writeFileSync(path('raw'), Buffer.alloc(MiB, 9));
  symlinkSync('raw', path('symbolic'));
  linkSync(path('raw'), path('hard'));
  await succeed(['create', '-q', '-f', 'qcow2', '-b', path('raw'), '-F', 'raw', path('overlay')]);
  await succeed(['create', '-q', '-f', 'qcow2', '-b', path('overlay'), '-F', 'qcow2', path('second')]);
  await succeed(['convert', '-f', 'raw', '-O', 'qcow2', path('raw'), path('qcow2')]);
  return path;
}

const lockText = (path: string): string =>
  `Failed to get "write" lock\nIs another process using the image [${path}]?\n`;

for (const [target, ...args] of [
  ['raw', '-f', 'raw', '-O', 'raw', 'raw'],
  ['symbolic', '-f', 'raw', '-O', 'raw', 'raw'],
  ['hard', '-f', 'raw', '-O', 'raw', 'raw'],
  ['raw', '-f', 'raw', '-O', 'qcow2', 'raw'],
  ['raw', '-U', '-f', 'raw', '-O', 'raw', 'raw'],
  ['hard', '-U', '-f', 'raw', '-O', 'raw', 'raw'],
  ['raw', '-f', 'qcow2', '-O', 'raw', 'overlay'],
  ['raw', '-U', '-f', 'qcow2', '-O', 'raw', 'second'],
  ['hard', '-f', 'qcow2', '-O', 'raw', 'second'],
  ['overlay', '-f', 'qcow2', '-O', 'qcow2', 'second'],
  ['qcow2', '-f', 'qcow2', '-O', 'raw', 'qcow2'],
  ['qcow2', '-f', 'raw', '-O', 'raw', 'qcow2'],
] as const)
  test(`nothing is lost when what convert reads is what it would write: ${args.join(' ')} ${target}`, () =>
    withFolder(async (folder) => {
      const path = await images(folder);
      const before = readFileSync(path(target));
      const words: string[] = [...args];
      const source = path(words.pop() ?? '');
      const format = words.at(-1);
      const command = ['convert', ...words, source, path(target)];
      assert.deepEqual(await img(command), {
        code: 1,
        stdout: '',
        stderr: `qemu-img: ${path(target)}: error while converting ${format}: ${lockText(path(target))}`,
      });
      assert.deepEqual(readFileSync(path(target)), before);
    }));

test('nothing is lost when a target that is there already is a source', () =>
  withFolder(async (folder) => {
    const path = await images(folder);
    for (const target of ['raw', 'symbolic', 'hard']) {
      const command = ['convert', '-n', '-f', 'raw', '-O', 'raw', path('raw'), path(target)];
      const { code, stderr } = await img(command);
      const refusal = `qemu-img: Could not open '${path(target)}': ${lockText(path(target))}`;
      assert.deepEqual({ code, stderr }, { code: 1, stderr: refusal });
    }
    const outside = await img(['convert', '-n', '-f', 'qcow2', '-O', 'raw', path('second'), path('raw')]);
    assert.equal(outside.stderr, `qemu-img: Could not open '${path('raw')}': ${lockText(path('raw'))}`);
    assert.deepEqual(readFileSync(path('raw')), Buffer.alloc(MiB, 9));
  }));

test('nothing is lost when options name a source as the target', () =>
  withFolder(async (folder) => {
    const path = await images(folder);
    const before = readFileSync(path('qcow2'));
    for (const target of ['raw', 'symbolic', 'hard'].map(path)) {
      const command = ['convert', '-n', '-U', '-f', 'qcow2', '--target-image-opts', path('second')];
      const options = `driver=raw,file.driver=raw,file.file.filename=${target}`;
      const { code, stderr } = await img([...command, options]);
      assert.deepEqual(
        { code, stderr },
        { code: 1, stderr: `qemu-img: Could not open '${options}': ${lockText(target)}` },
      );
    }
    assert.deepEqual(readFileSync(path('raw')), Buffer.alloc(MiB, 9));
    const other = `driver=qcow2,file.filename=${path('qcow2')}`;
    await succeed(['convert', '-n', '-U', '-f', 'raw', '--target-image-opts', path('raw'), other]);
    assert.equal(readFileSync(path('qcow2')).length, before.length);
  }));

test('an image is not made in a file that its own backing chain reads', () =>
  withFolder(async (folder) => {
    const path = await images(folder);
    await succeed(['create', '-q', '-f', 'qcow2', '-o', `data_file=${path('data')}`, path('base'), '1M']);
    for (const [backing, format, target] of [
      ['raw', 'raw', 'raw'],
      ['raw', 'raw', 'symbolic'],
      ['raw', 'raw', 'hard'],
      ['overlay', 'qcow2', 'raw'],
      ['second', 'qcow2', 'hard'],
      ['second', 'qcow2', 'overlay'],
      ['base', 'qcow2', 'data'],
    ] as const) {
      const before = readFileSync(path(target));
      const { code, stderr } = await img([
        ...['create', '-q', '-f', 'qcow2', '-b', path(backing), '-F', format, path(target)],
      ]);
      const text = 'Error: Trying to create an image with the same filename as the backing file';
      assert.deepEqual({ code, stderr }, { code: 1, stderr: `qemu-img: ${path(target)}: ${text}\n` });
      assert.deepEqual(readFileSync(path(target)), before);
    }
  }));

/** What is refused because of the file `busy`, and changes nothing in the folder. */
async function refuseFor(folder: string, busy: string, args: readonly string[]): Promise<void> {
  const contents = (): Array<[string, string]> =>
    readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), 'latin1')]);
  const before = contents();
  const { code, stderr } = await img(args);
  assert.equal(code, 1, args.join(' '));
  assert.ok(stderr.endsWith(lockText(busy)), `${args.join(' ')}: ${stderr}`);
  assert.deepEqual(contents(), before, args.join(' '));
}

test('the data file of a new image is neither the image itself nor what its backing file reads', () =>
  withFolder(async (folder) => {
    const path = await images(folder);
    const withData = ['-o', `data_file=${path('data')}`];
    await succeed(['create', '-q', '-f', 'qcow2', ...withData, path('base'), '1M']);
    for (const data of ['raw', 'symbolic', 'hard'])
      await refuseFor(folder, path(data), [
        ...['create', '-q', '-f', 'qcow2', '-o', `data_file=${path(data)}`, path('raw'), '1M'],
      ]);
    for (const [backing, format, data] of [
      ['raw', 'raw', 'hard'],
      ['second', 'qcow2', 'symbolic'],
      ['base', 'qcow2', 'data'],
    ] as const)
      await refuseFor(folder, path(data), [
        ...['create', '-q', '-f', 'qcow2', '-b', path(backing), '-F', format],
        ...['-o', `data_file=${path(data)}`, path('new')],
      ]);
  }));

test('no file beside a new image, or beside one that is there, is a source of the copy', () =>
  withFolder(async (folder) => {
    const path = await images(folder);
    writeFileSync(path('new-flat.vmdk'), Buffer.alloc(MiB, 7));
    await refuseFor(folder, path('new-flat.vmdk'), [
      ...['convert', '-U', '-f', 'raw', '-O', 'vmdk', '-o', 'subformat=monolithicFlat'],
      ...[path('new-flat.vmdk'), path('new.vmdk')],
    ]);
    await refuseFor(folder, path('hard'), [
      ...['convert', '-U', '-f', 'raw', '-O', 'qcow2', '-o', `data_file=${path('hard')}`],
      ...[path('raw'), path('new')],
    ]);
    await succeed(['create', '-q', '-f', 'qcow2', '-o', `data_file=${path('data')}`, path('new'), '1M']);
    await refuseFor(folder, path('data'), [
      ...['convert', '-n', '-U', '-f', 'raw', '-O', 'qcow2', path('data'), path('new')],
    ]);
  }));

/** Reads wait, each for another number of turns of the loop, so that they overtake each other. */
function unevenHost(): Host {
  const host = hostWithout(createRealHost(), 'sync');
  let turns = 0;
  return {
    ...host,
    files: {
      descriptorSets: host.files.descriptorSets,
      stat: (path) => host.files.stat(path),
      unlink: (path) => host.files.unlink(path),
      room: (path) => host.files.room(path),
      link: (path, newPath) => host.files.link(path, newPath),
      syncDirectory: (path) => host.files.syncDirectory(path),
      list: (path) => host.files.list(path),
      mkdir: (path, options) => host.files.mkdir(path, options),
      rename: (from, to) => host.files.rename(from, to),
      buffer: (lengthBytes) => host.files.buffer(lengthBytes),
      open: async (path, options) => {
        const file = await host.files.open(path, options);
        const read = file.read.bind(file);
        file.read = async (...part) => {
          turns = (turns + 7) % 11;
          for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
          await read(...part);
        };
        return file;
      },
    },
  };
}

test('convert writes in the order of the source, however its reads return', () =>
  withFolder(async (folder) => {
    const source = join(folder, 'source');
    const content = Buffer.alloc(24 * MiB);
    for (let at = 0; at + MiB <= content.length; at += 1.5 * MiB) content.fill(at / MiB + 1, at, at + MiB);
    writeFileSync(source, content);
    const targets: Buffer[] = [];
    for (const [name, host] of [
      ['even', createRealHost()],
      ['uneven', unevenHost()],
      ['again', unevenHost()],
    ] as const) {
      const target = join(folder, name);
      await succeed(['convert', '-f', 'raw', '-O', 'qcow2', source, target], host);
      targets.push(readFileSync(target));
      const { stdout } = await img(['map', '-f', 'qcow2', '--output=json', target]);
      const extents = JSON.parse(stdout) as Array<{ offset?: number }>;
      const offsets = extents.flatMap(({ offset }) => offset ?? []);
      assert.ok(offsets.length > 10);
      assert.deepEqual(
        offsets,
        [...offsets].sort((a, b) => a - b),
      );
    }
    assert.ok(targets[0]?.equals(targets[1] ?? Buffer.alloc(0)));
    assert.ok(targets[1]?.equals(targets[2] ?? Buffer.alloc(0)));
  }));
