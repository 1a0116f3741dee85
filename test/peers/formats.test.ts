import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, copyFileSync, ftruncateSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { imgMain } from '../../src/programs/img/main.js';
import { ioMain } from '../../src/programs/io/main.js';
import { seededBelow } from '../kit/crash-states.js';
import { toolAnswer } from '../kit/tool-answer.js';
import { scratch } from './daemon.js';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;
const MiB = 2 ** 20;
const DISK_BYTES = 12 * MiB;

interface Kind {
  name: string;
  format: string;
  options?: string;
  hasNoCheck?: boolean;
  /** Data is never overwritten. */
  isStream?: boolean;
  /** QEMU knows nothing of where a vhdx has its blocks; and of a small file's holes we do not ask. */
  hasNoMap?: boolean;
  /** Its extents are files of their own. */
  isSplit?: boolean;
}

const KINDS: readonly Kind[] = [
  { name: 'vdi', format: 'vdi' },
  { name: 'vdi static', format: 'vdi', options: 'static=on', hasNoMap: true },
  { name: 'vpc', format: 'vpc', options: 'force_size=on', hasNoCheck: true },
  { name: 'vpc fixed', format: 'vpc', options: 'subformat=fixed,force_size=on', hasNoCheck: true },
  { name: 'vhdx', format: 'vhdx', options: 'block_size=1M', hasNoMap: true },
  { name: 'vhdx fixed', format: 'vhdx', options: 'subformat=fixed', hasNoMap: true },
  { name: 'qed', format: 'qed' },
  { name: 'qed small', format: 'qed', options: 'cluster_size=4k,table_size=2' },
  { name: 'parallels', format: 'parallels', options: 'cluster_size=64k' },
  ...[
    'monolithicSparse',
    'monolithicFlat',
    'twoGbMaxExtentSparse',
    'twoGbMaxExtentFlat',
    'streamOptimized',
  ].map((subformat) => ({
    name: `vmdk ${subformat}`,
    format: 'vmdk',
    options: `subformat=${subformat}`,
    isStream: subformat === 'streamOptimized',
    isSplit: !['monolithicSparse', 'streamOptimized'].includes(subformat),
  })),
];

function qemu(tool: 'img' | 'io', folder: string, ...args: string[]): string {
  const done = spawnSync(`qemu-${tool}`, args, { cwd: folder, encoding: 'utf8', timeout: 120_000 });
  assert.equal(done.status, 0, `qemu-${tool} ${args.join(' ')}: ${done.stdout}${done.stderr}`);
  return done.stdout;
}

async function ours(tool: 'img' | 'io', ...args: string[]): Promise<string> {
  const main = tool === 'img' ? imgMain : ioMain;
  const { code, stdout, stderr } = await toolAnswer((out) => main(args, out, createRealHost(), allDrivers));
  assert.equal(code, 0, `${tool} ${args.join(' ')}: ${stdout}${stderr}`);
  return stdout;
}

/** Data here and there, some of it that does not compress. */
function newContent(path: string, below: (bound: number) => number): void {
  const fd = openSync(path, 'w');
  ftruncateSync(fd, DISK_BYTES);
  for (let i = 0; i < 12; i++) {
    const bytes = Buffer.alloc(512 * (1 + below(600)), 1 + below(255));
    if (i % 3 === 0) for (let at = 0; at < bytes.length; at++) bytes[at] = below(256);
    writeSync(fd, bytes, 0, bytes.length, 512 * below((DISK_BYTES - bytes.length) / 512));
  }
  closeSync(fd);
}

function optionWords({ options }: Kind): string[] {
  return options === undefined ? [] : ['-o', options];
}

/** qemu-img finds nothing wrong, and what we wrote. */
function judge(folder: string, kind: Kind, image: string, expected: string): void {
  if (kind.hasNoCheck !== true) qemu('img', folder, 'check', '-f', kind.format, image);
  qemu('img', folder, 'compare', '-f', 'raw', '-F', kind.format, expected, image);
}

/** Commands of qemu-io and `livedisk io`, in whole sectors. */
function randomCommands(kind: Kind, below: (bound: number) => number): string[] {
  return Array.from({ length: 12 }, () => {
    const length = 512 * (1 + below(below(2) === 0 ? 8 : 3000));
    const offset = 512 * below((DISK_BYTES - length) / 512);
    if (kind.isStream === true) return `read ${offset} ${length}`;
    switch (below(6)) {
      case 0:
        return `write -z ${offset} ${length}`;
      case 1:
        return 'flush';
      default:
        return `write -P ${1 + below(255)} ${offset} ${length}`;
    }
  });
}

const flagged = (commands: readonly string[]): string[] => commands.flatMap((command) => ['-c', command]);

function workplace(context: TestContext): { folder: string; path: (name: string) => string } {
  const folder = scratch(context);
  return { folder, path: (name) => join(folder, name) };
}

for (const [index, kind] of KINDS.entries()) {
  const { name, format } = kind;

  test(`${name}: what either side makes, the other reads`, { skip }, async (context) => {
    const { folder, path } = workplace(context);
    const below = seededBelow(0x5eed + index);
    newContent(path('content'), below);
    const words = [...optionWords(kind), 'content'];
    qemu('img', folder, 'convert', '-f', 'raw', '-O', format, ...words, 'theirs');
    await ours('img', 'compare', '-f', 'raw', '-F', format, path('content'), path('theirs'));
    await ours('img', 'convert', '-f', format, '-O', 'raw', path('theirs'), path('back'));
    qemu('img', folder, 'compare', '-f', 'raw', '-F', 'raw', 'content', 'back');
    await ours(
      'img',
      'convert',
      '-f',
      'raw',
      '-O',
      format,
      ...optionWords(kind),
      path('content'),
      path('mine'),
    );
    judge(folder, kind, 'mine', 'content');
  });

  test(`${name}: both sides write to one image in turn`, { skip }, async (context) => {
    const { folder, path } = workplace(context);
    const seed = Number(process.env['FUZZ_SEED'] ?? Date.now() % 2 ** 31);
    context.diagnostic(`FUZZ_SEED=${seed}`);
    const below = seededBelow(seed + index);
    newContent(path('content'), below);
    qemu('img', folder, 'convert', '-f', 'raw', '-O', format, ...optionWords(kind), 'content', 'image');
    for (let round = 0; round < 4; round++) {
      const commands = randomCommands(kind, below);
      qemu('io', folder, '-f', 'raw', ...flagged(commands), 'content');
      if (round % 2 === 0) await ours('io', '-f', format, ...flagged(commands), path('image'));
      else qemu('io', folder, '-f', format, ...flagged(commands), 'image');
      judge(folder, kind, 'image', 'content');
      await ours('img', 'compare', '-f', 'raw', '-F', format, path('content'), path('image'));
      if (kind.hasNoCheck !== true) await ours('img', 'check', '-f', format, path('image'));
    }
  });

  test(`${name}: the tools say the same of it`, { skip }, async (context) => {
    const pair = new ToolPair(context);
    const options = kind.options === undefined ? '' : `-o ${kind.options}`;
    const convert = `qemu-img convert -f raw -O ${format} ${options} content image`;
    for (const side of ['ours', 'theirs'] as const)
      newContent(pair.path(side, 'content'), seededBelow(0xabc + index));
    pair.prepare(`qemu-img create -q -f raw empty 1M`);
    pair.shell('theirs', convert);
    pair.shell('theirs', 'ln image* ../ours/');
    if (kind.isSplit !== true) {
      await pair.alike(`img info -f ${format} image`);
      await pair.alike(`img info -f ${format} --output=json image`);
    }
    if (kind.hasNoMap !== true) {
      await pair.alike(`img map -f ${format} --output=json image`);
      await pair.alike(`img map -f ${format} image`);
    }
    await pair.alike(`img check -f ${format} image`);
    await pair.alike(`img check -f ${format} --output=json image`);
    await pair.alike(`img create -f ${format} ${options} new 3M`);
    await pair.alike(`img create -f ${format} ${options} new 5000`);
    await pair.alike(`img info -f ${format} empty`);
  });
}

test('sizes by geometry are those of qemu-img', { skip }, async (context) => {
  const pair = new ToolPair(context);
  const sizes = [1, 512, 69632, 10 * MiB, 100 * MiB + 512, 504 * MiB, 2 ** 31, 130e9, 136 * 2 ** 30];
  for (const size of sizes) {
    await pair.alike(`img create -f vpc image ${Math.floor(size)}`);
    const text = (answer: { stdout: string }): string | undefined =>
      /virtual size: .*/.exec(answer.stdout)?.[0];
    const [theirs, mine] = await pair.answers('img info -f vpc image');
    assert.equal(text(mine), text(theirs), `${size}`);
    rmSync(pair.path('ours', 'image'));
    rmSync(pair.path('theirs', 'image'));
  }
});

test('options of new images are refused in the same words', { skip }, async (context) => {
  const pair = new ToolPair(context);
  for (const line of [
    '-f vdi x 600T',
    '-f vdi -o static=maybe x 1M',
    '-f vpc x 3T',
    '-f vpc -o force_size=on x 2T',
    '-f vpc -o subformat=foo x 2M',
    '-f parallels x 4P',
    '-f qed -o cluster_size=1000 x 1M',
    '-f qed -o table_size=3 x 1M',
    '-f qed x 100T',
    '-f vhdx -o block_size=3M x 1M',
    '-f vhdx -o block_size=512M x 1M',
    '-f vhdx -o subformat=x x 1M',
    '-f vhdx x 65T',
    '-f vmdk -o adapter_type=foo x 1M',
    '-f vmdk -o subformat=foo x 1M',
    '-f vmdk -o hwversion=7,compat6=on x 1M',
    '-f vmdk -o hwversion=7,adapter_type=lsilogic x 1M',
    '-f vmdk -o subformat=monolithicFlat,zeroed_grain=on x 1M',
    '-f vdi -b x -F raw y 1M',
  ]) {
    const [theirs, mine] = await pair.answers(`img create ${line}`);
    assert.deepEqual([mine.code, mine.stderr.trimEnd()], [theirs.code, theirs.stderr.trimEnd()], line);
  }
});

test(
  'vmdk and qed chains are read as theirs, and a parent that was changed is refused',
  { skip },
  async (context) => {
    const pair = new ToolPair(context);
    for (const format of ['vmdk', 'qed']) {
      mkdirSync(pair.path('ours', format));
      pair.shell(
        'theirs',
        `qemu-img create -q -f ${format} base.${format} 4M
qemu-io -f ${format} -c 'write -P 1 0 3M' base.${format} >/dev/null
qemu-img create -q -f ${format} -b base.${format} -F ${format} top.${format}
qemu-io -f ${format} -c 'write -P 2 1M 64k' top.${format} >/dev/null`,
      );
      for (const name of ['base', 'top'])
        copyFileSync(pair.path('theirs', `${name}.${format}`), pair.path('ours', `${name}.${format}`));
      await pair.alike(`img info top.${format}`);
      await pair.alike(`img map --output=json top.${format}`);
      await pair.alike(
        `io -f ${format} -c 'read -P 1 0 1M' -c 'read -P 2 1M 64k' -c 'read -P 0 3M 1M' top.${format}`,
      );
      await ours('img', 'create', '-q', '-f', format, '-b', `base.${format}`, '-F', format, 'mine');
      await ours('io', '-f', format, '-c', 'write -P 3 2M 100k', 'mine');
      const folder = pair.path('ours', '');
      qemu('io', folder, '-f', format, '-c', 'read -P 1 0 2M', '-c', 'read -P 3 2M 100k', 'mine');
      qemu('img', folder, 'check', '-f', format, 'mine');
    }
    pair.prepare("qemu-io -f vmdk -c 'write -P 9 0 64k' base.vmdk >/dev/null");
    await pair.alike("io -f vmdk -r -c 'read 0 64k' top.vmdk");
  },
);
