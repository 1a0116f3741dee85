import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

/** An update puts other files in the place of a program's, whose process goes on until it is taken over, or for good. */

/** What is installed beside the program, by itself: what is only linked would stay. */
const PACKAGES = ['koffi', '@koromix', 'zstddec'];

/** One for each way in which clusters are compressed. */
const IMAGES = ['zlib', 'zstd'];

test('a daemon whose program is replaced expands clusters, speaks TLS, and ends well', (t) =>
  replacedWhileItServes(t));

test('and so does one on a system without libzstd', (t) => {
  const folder = scratch(t);
  // One that is found first, and is none.
  writeFileSync(join(folder, 'libzstd.so.1'), '');
  return replacedWhileItServes(t, 'env', `LD_LIBRARY_PATH=${folder}`);
});

async function replacedWhileItServes(t: TestContext, ...before: string[]): Promise<void> {
  if (skipWithout(t, 'qemu-img', 'qemu-io')) return;
  const folder = scratch(t);
  const installed = join(folder, 'installed');
  const packages = join(folder, 'node_modules');
  cpSync(dirname(PROGRAM), installed, { recursive: true });
  for (const name of PACKAGES)
    cpSync(join(import.meta.dirname, '../../node_modules', name), join(packages, name), { recursive: true });
  mkdirSync(join(folder, 'psk'));
  writeFileSync(join(folder, 'psk/keys.psk'), `qemu:${'ab'.repeat(16)}\n`);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'raw', '8M');
  run(folder, 'qemu-io', '-f', 'raw', '-c', 'write -q -P 7 0 8M', 'raw');
  const convert = ['convert', '-c', '-f', 'raw', '-O', 'qcow2'];
  run(folder, 'qemu-img', ...convert, 'raw', 'zlib.qcow2');
  run(folder, 'qemu-img', ...convert, '-o', 'compression_type=zstd', 'raw', 'zstd.qcow2');
  const daemon = await Daemon.start(t, folder, [
    ...[
      ...before,
      process.execPath,
      join(installed, 'livedisk.cjs'),
      'run',
      '-nodefaults',
      '-monitor',
      'none',
    ],
    ...IMAGES.flatMap((name) => [
      ...['-blockdev', `driver=qcow2,node-name=${name},file.driver=file,file.filename=${name}.qcow2`],
    ]),
    ...['-object', 'tls-creds-psk,id=tls,dir=psk,endpoint=server'],
    ...['-nbd-server', 'addr.type=unix,addr.path=nbd,tls-creds=tls'],
    ...IMAGES.flatMap((name) => ['-export', `type=nbd,id=${name},node-name=${name},name=${name}`]),
    ...['-qmp', 'unix:qmp.sock,server=on,wait=off'],
  ]);
  await daemon.execute('query-status');
  renameSync(installed, join(folder, 'before'));
  renameSync(packages, join(folder, 'packages before'));
  for (const name of IMAGES) {
    const image = `driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=nbd,file.export=${name}`;
    const { status, stdout, stderr } = spawnSync(
      'qemu-io',
      [
        ...['--object', 'tls-creds-psk,id=tls,dir=psk,endpoint=client,username=qemu'],
        ...['-r', '-c', 'read -P 7 0 8M', '--image-opts', `${image},file.tls-creds=tls`],
      ],
      { cwd: folder, encoding: 'utf8' },
    );
    assert.equal(status, 0, `${stdout}${stderr}${daemon.output}`);
    assert.doesNotMatch(stdout, /failed/, daemon.output);
  }
  assert.equal(await daemon.quit(), 0, daemon.output);
}
