import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { errnoError } from '../../base/error.js';
import { allDrivers } from '../../drivers/index.js';
import { createRealHost } from '../../host/real.js';
import { NbdServer } from '../../wire/nbd/server.js';
import { DamagedQcow2 } from '../../../test/kit/damaged-qcow2.js';
import { HandmadeQcow2 } from '../../../test/kit/handmade-qcow2.js';
import { MemoryTarget } from '../../../test/kit/nbd-target.js';
import { lyingHost } from '../../../test/kit/lying-host.js';
import { assertSameBytes, withFolder } from '../../../test/kit/test-disk.js';
import { img } from '../../../test/kit/img-tool.js';
import { imageOf, toolAnswer } from '../../../test/kit/tool-answer.js';
import { splitOptions } from './create-options.js';
import { approximateSize } from '../../monitor/image-text.js';
import { imgMain } from './main.js';

const KiB = 1024;
const MiB = 1024 * KiB;

async function succeed(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await img(...args);
  assert.equal(code, 0, `${args.join(' ')}: ${stdout}${stderr}`);
  return stdout;
}

test('options and sizes', () => {
  assert.deepEqual(
    [...splitOptions(['a=1,b=x,,y', 'c'])],
    [
      ['a', '1'],
      ['b', 'x,y'],
      ['c', 'on'],
    ],
  );
  assert.deepEqual([0, 512, 1000, 64 * KiB, 9.625 * MiB, 10 * MiB, 1.5 * 1024 * MiB].map(approximateSize), [
    '0 B',
    '512 B',
    '0.977 KiB',
    '64 KiB',
    '9.62 MiB',
    '10 MiB',
    '1.5 GiB',
  ]);
});

test('info lists the internal snapshots', () =>
  withFolder(async (folder) => {
    const image = new HandmadeQcow2({ sizeBytes: 8 * 64 * KiB });
    image.data(0, 1);
    const table = image.snapshot();
    image.u32(table + 16, 1e9);
    image.u64(table + 24, 363_725_678_999_999n);
    image.u32(table + 32, 512);
    const path = join(folder, 'image');
    writeFileSync(path, image.bytes);
    const text = await succeed('info', path);
    // Local time.
    const date = new Date(1e9 * 1000).toLocaleString('sv-SE');
    assert.match(
      text,
      /\nSnapshot list:\nID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT\n/,
    );
    // The 64-bit size of the extra data counts, not the older one of 32 bits.
    assert.ok(text.includes(`\n1         s                     0 B ${date}101:02:05.678           \n`), text);
    const { snapshots } = JSON.parse(await succeed('info', '--output=json', path)) as { snapshots: object[] };
    assert.deepEqual(snapshots, [
      {
        'vm-clock-nsec': 678_999_999,
        name: 's',
        'date-sec': 1e9,
        'date-nsec': 0,
        'vm-clock-sec': 363_725,
        id: '1',
        'vm-state-size': 0,
      },
    ]);
  }));

test('content survives raw to qcow2 and back, with its holes', () =>
  withFolder(async (folder) => {
    const at = (name: string): string => join(folder, name);
    const extent = fc.record({
      sector: fc.nat(4095),
      sectors: fc.integer({ min: 1, max: 700 }),
      fill: fc.nat(2),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(extent, { maxLength: 8 }),
        fc.constantFrom('-S0', '-S4k', '-S64k', '-C'),
        fc.constantFrom('512', '4k', '64k', '2M'),
        async (extents, how, cluster) => {
          const content = Buffer.alloc(2 * MiB);
          for (const { sector, sectors, fill } of extents)
            content.fill(fill, sector * 512, Math.min((sector + sectors) * 512, content.length));
          writeFileSync(at('a.raw'), content);
          const to = ['convert', how, '-f', 'raw', '-O', 'qcow2', '-o', `cluster_size=${cluster}`];
          await succeed(...to, at('a.raw'), at('a.q'));
          assert.match(await succeed('check', at('a.q')), /^No errors were found/);
          assert.match(await succeed('compare', '-f', 'raw', at('a.raw'), at('a.q')), /identical/);
          await succeed('convert', how, '-f', 'qcow2', '-O', 'raw', at('a.q'), at('b.raw'));
          assertSameBytes(readFileSync(at('b.raw')), content, 'raw again');
        },
      ),
      { numRuns: 25 },
    );
  }));

test('what a vmdk does not compress is written as it is; what has no clusters is refused', () =>
  withFolder(async (folder) => {
    const [source, target] = [join(folder, 'a.raw'), join(folder, 'b.vmdk')];
    writeFileSync(source, Buffer.concat([Buffer.alloc(MiB, 1), Buffer.alloc(3 * MiB)]));
    for (const subformat of ['monolithicSparse', 'twoGbMaxExtentSparse', 'streamOptimized']) {
      await succeed('convert', '-c', '-O', 'vmdk', '-o', `subformat=${subformat}`, source, target);
      await succeed('compare', '-f', 'raw', source, target);
    }
    const { code, stderr } = await img(
      'convert',
      '-c',
      '-O',
      'vmdk',
      '-o',
      'subformat=monolithicFlat',
      source,
      target,
    );
    assert.deepEqual([code, stderr], [1, 'qemu-img: invalid cluster size\n']);
  }));

test('amend tells its options, by the format or by the image', () =>
  withFolder(async (folder) => {
    const image = join(folder, 'a.qcow2');
    await succeed('create', '-q', '-f', 'qcow2', image, '1M');
    const told = await succeed('amend', '-f', 'qcow2', '-o', 'help', 'nosuch');
    assert.match(
      told,
      /^Amend options for 'qcow2':\n {2}backing_file=<str> {5}- File name of a base image\n/,
    );
    assert.match(told, /\n {2}encrypt\.keyslot=<num> +- Select a single keyslot/);
    assert.equal(await succeed('amend', '-o', 'size=2M,help', image), told);
    const { stderr } = await img('amend', '-f', 'vmdk', '-o', 'help');
    assert.equal(stderr, "qemu-img: Format driver 'vmdk' does not support option amendment\n");
  }));

test('an overlay keeps its backing file, and compares equal to what it was copied from', () =>
  withFolder(async (folder) => {
    const at = (name: string): string => join(folder, name);
    writeFileSync(at('a.raw'), Buffer.alloc(MiB, 5));
    await succeed('create', '-q', '-f', 'qcow2', '-b', 'a.raw', '-F', 'raw', at('b.q'));
    const copy = ['convert', '-O', 'qcow2', '-B', 'a.raw', '-F', 'raw', at('b.q'), at('c.q')];
    await succeed(...copy);
    assert.match(await succeed('compare', at('b.q'), at('c.q')), /identical/);
    assert.match(await succeed('info', at('c.q')), /^backing file: a.raw \(actual path: .*\/a.raw\)$/m);
    assert.ok(statSync(at('c.q')).size < MiB, 'nothing was copied');
    await succeed('rebase', '-u', '-b', '', at('c.q'));
    assert.doesNotMatch(await succeed('info', at('c.q')), /backing/);
    const differ = await img('compare', at('b.q'), at('c.q'));
    assert.deepEqual([differ.code, differ.stdout], [1, 'Content mismatch at offset 0!\n']);
    const map = await succeed('map', '--output=json', at('b.q'));
    assert.deepEqual(JSON.parse(map), [
      { start: 0, length: MiB, depth: 1, present: true, zero: false, data: true, offset: 0 },
    ]);
  }));

test('an existing target is overwritten with zeroes too', () =>
  withFolder(async (folder) => {
    const at = (name: string): string => join(folder, name);
    writeFileSync(at('a.raw'), Buffer.alloc(MiB));
    writeFileSync(at('b.raw'), Buffer.alloc(2 * MiB, 1));
    await succeed('convert', '-n', '-f', 'raw', '-O', 'raw', at('a.raw'), at('b.raw'));
    const expected = Buffer.concat([Buffer.alloc(MiB), Buffer.alloc(MiB, 1)]);
    assertSameBytes(readFileSync(at('b.raw')), expected, 'target');
  }));

test('check -r repairs, checks again and says so', () =>
  withFolder(async (folder) => {
    const path = join(folder, 'a.q');
    await succeed('create', '-q', '-f', 'qcow2', path, '1M');
    const image = new DamagedQcow2(readFileSync(path));
    image.grow(2);
    image.setRefcount(image.bytes.length - image.clusterBytes, 2);
    writeFileSync(path, image.bytes);
    const cluster = image.bytes.length / image.clusterBytes - 1;
    const { code, stdout, stderr } = await img('check', '-r', 'leaks', path);
    assert.deepEqual(
      [code, stderr],
      [
        0,
        `Leaked cluster ${cluster} refcount=2 reference=0\nRepairing cluster ${cluster} refcount=2 reference=0\n`,
      ],
    );
    assert.match(
      stdout,
      /^The following inconsistencies were found and repaired:\n\n    1 leaked clusters\n    0 corruptions\n\nDouble checking the fixed image now...\nNo errors were found on the image.\n/,
    );
    assert.match(await succeed('check', path), /^No errors were found/);
    const raw = join(folder, 'a.raw');
    writeFileSync(raw, Buffer.alloc(512));
    assert.equal((await img('check', '-r', 'all', '-f', 'raw', raw)).code, 63);
  }));

test('what livedisk does not have is refused by name', () =>
  withFolder(async (folder) => {
    const path = join(folder, 'a.q');
    await succeed('create', '-q', '-f', 'qcow2', path, '1M');
    const cases: ReadonlyArray<readonly [string[], RegExp]> = [
      [
        ['info', '--object', 'can-bus,id=s', path],
        /Value 'can-bus' of parameter 'qom-type' is not supported by livedisk/,
      ],
      [
        ['create', '-f', 'qcow2', '-o', 'encryption=on', path, '1M'],
        /Parameter 'encrypt.key-secret' is required for cipher/,
      ],
    ];
    for (const [args, message] of cases) {
      const answer = await img(...args);
      assert.equal(answer.code, 1, args.join(' '));
      assert.match(answer.stderr, message);
    }
  }));

test('an image that cannot be made leaves no file, and none that was there is lost to wrong options', () =>
  withFolder(async (folder) => {
    const path = join(folder, 'new.qcow2');
    const wrong = [
      'cluster_size=3000',
      'refcount_bits=3',
      'compat=0.10,refcount_bits=8',
      'compat=0.10,extended_l2=on',
    ];
    for (const options of wrong) {
      assert.equal((await img('create', '-f', 'qcow2', '-o', options, path, '1M')).code, 1, options);
      assert.ok(!existsSync(path), options);
    }
    writeFileSync(path, 'what was there');
    for (const options of wrong) {
      assert.equal((await img('create', '-f', 'qcow2', '-o', options, path, '1M')).code, 1, options);
      assert.equal(readFileSync(path, 'latin1'), 'what was there', options);
    }
    const long = join(folder, 'long.qcow2');
    const name = 'x'.repeat(700);
    const backing = ['-u', '-b', name, '-F', 'raw'];
    const answer = await img('create', '-f', 'qcow2', '-o', 'cluster_size=512', ...backing, long, '1M');
    assert.equal(answer.code, 1);
    assert.ok(!existsSync(long));
  }));

test('what says nothing, or nothing that can be kept, is refused in the words of qemu-img', () =>
  withFolder(async (folder) => {
    const [source, path] = [join(folder, 'source.raw'), join(folder, 'new.qcow2')];
    writeFileSync(source, Buffer.alloc(512));
    const create = ['create', '-f', 'qcow2'];
    const empty = 'Expected backing file name, got empty string';
    const format = "Parameter 'backing-fmt' does not accept value 'bogus'";
    const alone = 'Backing format cannot be used without backing file';
    const converting = `${path}: error while converting qcow2: `;
    const cases: Array<readonly [string, string[]]> = [
      ['Invalid option list: ,', [...create, '-o', ',', path, '1M']],
      ['Invalid option list: ', [...create, '-o', '', path, '1M']],
      ['Invalid option list: compat=v3,', [...create, '-o', 'compat=v3,', path, '1M']],
      ['Invalid option list: ', ['convert', '-O', 'qcow2', '-o', '', source, path]],
      [`${path}: ${empty}`, [...create, '-b', '', path, '1M']],
      [`${path}: Backing file specified without backing format`, [...create, '-u', '-b', 'x', path, '1M']],
      [`${path}: ${format}`, [...create, '-u', '-b', 'x', '-F', 'bogus', path, '1M']],
      [`${converting}${format}`, ['convert', '-O', 'qcow2', '-B', source, '-F', 'bogus', source, path]],
      [`${converting}${alone}`, ['convert', '-O', 'qcow2', '-F', 'raw', source, path]],
      [
        `${path}: Backing file format not supported for file format 'raw'`,
        ['create', '-F', 'raw', path, '1M'],
      ],
    ];
    for (const [message, args] of cases) {
      const { code, stderr } = await img(...args);
      assert.equal(stderr.replace(/^WARNING(.*\n){3}/, ''), `qemu-img: ${message}\n`, args.join(' '));
      assert.equal(code, 1);
      assert.ok(!existsSync(path), args.join(' '));
    }
  }));

test('an image whose block status cannot be had is no image that differs', () =>
  withFolder(async (folder) => {
    const path = join(folder, 'socket');
    const server = await NbdServer.listen(createRealHost(), { type: 'unix', path });
    const target = new MemoryTarget(MiB);
    target.status = () => Promise.reject(errnoError('EIO'));
    server.addExport({ name: '', target, readOnly: false, multiConn: true });
    const raw = imageOf(folder, 'raw', MiB);
    const shorter = imageOf(folder, 'shorter', MiB / 2);
    const disk = `nbd+unix://?socket=${path}`;
    for (const pair of [
      [raw, disk],
      [disk, raw],
      [disk, shorter],
    ]) {
      const { code, stderr } = await img('compare', '-f', 'raw', '-F', 'raw', ...pair);
      assert.deepEqual([code, stderr], [3, `qemu-img: Sector allocation test failed for ${disk}\n`]);
    }
    const { code, stderr } = await img('map', '-f', 'raw', disk);
    assert.deepEqual([code, stderr], [1, 'qemu-img: Could not read file metadata: Input/output error\n']);
    await server.close();
  }));

test('an export keeps its size', () =>
  withFolder(async (folder) => {
    const path = join(folder, 'socket');
    const server = await NbdServer.listen(createRealHost(), { type: 'unix', path });
    server.addExport({ name: '', target: new MemoryTarget(MiB), readOnly: false, multiConn: true });
    const disk = `nbd+unix://?socket=${path}`;
    for (const size of ['512k', '2M']) {
      const { code, stdout, stderr } = await img('resize', '--shrink', '-f', 'raw', disk, size);
      assert.deepEqual([code, stdout, stderr], [1, '', 'qemu-img: Cannot resize NBD nodes\n']);
    }
    assert.equal(await succeed('resize', '-f', 'raw', disk, '1M'), 'Image resized.\n');
    await succeed('create', '-f', 'qcow2', disk, '64k');
    assert.equal(await succeed('resize', '-f', 'qcow2', disk, '128k'), 'Image resized.\n');
    await server.close();
  }));

test('the version is told in the form of QEMU’s tools', async () => {
  assert.match((await img('--version')).stdout, /^qemu-img version 7\.2\.\d+ \(livedisk \d+\.\d+\.\d+\)\n/);
});

test('checksum hashes what a disk shows, and convert what it copies', () =>
  withFolder(async (folder) => {
    const path = (name: string): string => join(folder, name);
    const content = Buffer.alloc(3 * MiB);
    content.fill(7, 65_000, MiB);
    writeFileSync(path('raw'), content);
    const hash = createHash('sha256').update(content).digest('hex');
    const told = await succeed(
      'convert',
      '--checksum',
      'sha256',
      '-f',
      'raw',
      '-O',
      'qcow2',
      path('raw'),
      path('q'),
    );
    assert.equal(told, `${hash}  ${path('q')}\n`);
    assert.equal(await succeed('checksum', path('q')), `${hash}  ${path('q')}\n`);
    const md5 = createHash('md5').update(content).digest('hex');
    assert.equal(await succeed('checksum', '--algorithm=md5', path('q')), `${md5}  ${path('q')}\n`);
    const unordered = await img('convert', '-W', '--checksum', 'sha256', path('q'), path('r'));
    assert.match(unordered.stderr, /--checksum and -W are mutually exclusive/);
    assert.match((await img('checksum', '--algorithm=crc', path('q'))).stderr, /Unknown checksum 'crc'/);
  }));

test('convert writes a manifest and reads its copy back; verify says what is not as it says', () =>
  withFolder(async (folder) => {
    const path = (name: string): string => join(folder, name);
    const content = Buffer.alloc(3 * MiB + 1000);
    content.fill(7, 65_000, MiB);
    content.fill(9, 3 * MiB);
    writeFileSync(path('raw'), content);
    const lie = { file: '/copy', position: 70_000, times: 1 };
    const host = lyingHost(createRealHost(), [lie]);
    const words = ['--verify', '--manifest', path('copy.manifest'), '-f', 'raw', '-O', 'raw'];
    const converted = await toolAnswer((out) =>
      imgMain(['convert', ...words, path('raw'), path('copy')], out, host, allDrivers),
    );
    assert.deepEqual(converted, {
      code: 0,
      stdout: '',
      stderr: 'qemu-img: warning: the copy differs in 65536 bytes at 65536: copied again\n',
    });
    assert.ok(readFileSync(path('copy')).subarray(0, content.length).equals(content));
    const size = statSync(path('copy')).size;
    assert.equal(
      await succeed('verify', '-f', 'raw', path('copy')),
      `The image is what its manifest says (${size} of ${size} bytes).\n`,
    );
    await succeed('convert', '-f', 'raw', '-O', 'qcow2', path('copy'), path('q'));
    assert.match(await succeed('verify', path('q'), path('copy.manifest')), /is what its manifest says/);

    const changed = readFileSync(path('copy'));
    changed[MiB + 5] = 1;
    changed[3 * MiB + 999] = 1;
    writeFileSync(path('copy'), changed);
    assert.deepEqual(await img('verify', '-f', 'raw', path('copy')), {
      code: 1,
      stdout: `Differs: 65536 bytes at ${MiB}\nDiffers: 1024 bytes at ${3 * MiB}\nThe image is not what its manifest says: 2 chunks differ.\n`,
      stderr: '',
    });

    const again = await img('convert', ...words, path('raw'), path('other'));
    assert.match(again.stderr, /Manifest '.*copy.manifest' exists already/);
    const unordered = await img('convert', '-W', '--verify', path('q'), path('r'));
    assert.match(unordered.stderr, /--verify and -W are mutually exclusive/);
    const backed = await img(
      'convert',
      '--verify',
      '-O',
      'qcow2',
      '-B',
      path('q'),
      '-F',
      'qcow2',
      path('q'),
      path('r'),
    );
    assert.match(backed.stderr, /--verify and -B are mutually exclusive/);
  }));

test('whatever hinders verify is trouble: status 1 is its answer', () =>
  withFolder(async (folder) => {
    const image = join(folder, 'a.raw');
    writeFileSync(image, Buffer.alloc(KiB));
    const lines = [
      ['--foo', image],
      [],
      ['-T', 'none-such', image],
      [image, 'a', 'b'],
      ['--object', 'x', image],
    ];
    for (const words of [...lines, [image], ['-f', 'qcow2', image]])
      assert.equal((await img('verify', ...words)).code, 2, words.join(' '));
    assert.equal(
      (await img('-T', 'x', 'verify', join(folder, 'missing'))).code,
      2,
      'behind a general option',
    );
  }));

test('a manifest that is broken anywhere is refused, whatever is wrong with it', () =>
  withFolder(async (folder) => {
    const path = (name: string): string => join(folder, name);
    writeFileSync(path('raw'), Buffer.alloc(MiB, 7));
    await succeed('convert', '--manifest', path('m'), '-f', 'raw', '-O', 'raw', path('raw'), path('copy'));
    const good = readFileSync(path('m'));
    assert.equal((await img('verify', '-f', 'raw', path('copy'), path('m'))).code, 0);
    await fc.assert(
      fc.asyncProperty(
        fc.nat(good.length - 1),
        fc.integer({ min: 1, max: 255 }),
        fc.boolean(),
        async (at, difference, isCut) => {
          const bad = Buffer.from(good);
          bad[at] = ((bad[at] ?? 0) + difference) % 256;
          writeFileSync(path('bad'), isCut ? good.subarray(0, at) : bad);
          const { code, stderr } = await img('verify', '-f', 'raw', path('copy'), path('bad'));
          assert.equal(code, 2);
          assert.match(stderr, /Manifest '.*' (cannot be used: |is of a disk of )/);
        },
      ),
      { numRuns: 60 },
    );
  }));

test('explain tells of the chain, of what is wrong, and who owns what', () =>
  withFolder(async (folder) => {
    const path = (name: string): string => join(folder, name);
    writeFileSync(path('base'), Buffer.alloc(MiB, 7));
    await succeed('create', '-q', '-f', 'qcow2', '-b', path('base'), '-F', 'raw', path('top'), '2M');
    const told = await succeed('explain', path('top'));
    assert.match(
      told,
      /is a qcow2 image of a disk of 2\.0 MiB \(2097152 bytes\)\. It is the top of a chain of 2 images\./,
    );
    assert.match(told, /its disk is longer than that one's\n/);
    assert.match(told, /QEMU 1\.1 and later can read it\n {2}nothing is wrong with it/);
    assert.match(told, /0 B {2}A{16}\.{16}|0 B {2}A{32}\.{32}/);
    rmSync(path('base'));
    assert.match(await succeed('explain', path('top')), /\n\nThe chain is broken: Could not open '.*base'/);
  }));

test('a file with holes is told of, made compact, and told of again', () =>
  withFolder(async (folder) => {
    const [image, raw] = [join(folder, 'image'), join(folder, 'raw')];
    writeFileSync(raw, Buffer.alloc(4 * MiB, 7));
    await succeed('convert', '-O', 'qcow2', raw, image);
    await succeed('snapshot', '-c', 'before', image);
    await succeed('rebase', '-q', '-u', '-b', '', image);
    writeFileSync(raw, Buffer.alloc(4 * MiB, 8));
    await succeed('convert', '-n', '-O', 'qcow2', raw, image);
    await succeed('snapshot', '-d', 'before', image);
    const text = await succeed('info', '--file-use', image);
    assert.match(
      text,
      /\nUse of its file:\n {4}its content needs 4\.\d MiB, its file is 8\.\d MiB long, 1\.\d\d times as much\n/,
    );
    assert.match(
      text,
      /\n {4}4\.\d MiB inside are free, and written to first\n {4}its data lies in \d+ stretch/,
    );
    assert.match(await succeed('explain', image), /\n {2}4\.\d MiB inside are free/);
    const use = async (): Promise<Record<string, number>> => {
      const info = JSON.parse(await succeed('info', '--file-use', '--output=json', image)) as never;
      return info['x-file-use'];
    };
    const { free = 0, leaked, length } = await use();
    assert.ok(free >= 4 * MiB && leaked === 0);
    const dryRun = JSON.parse(await succeed('compact', '--dry-run', '--output=json', image)) as {
      [key: string]: number;
    };
    assert.deepEqual([dryRun['former-length'], (await use())['length']], [length, length]);
    assert.match(await succeed('compact', image), /^The file was 8\.\d MiB .* long, and is 4\.\d MiB/);
    const after = await use();
    assert.deepEqual([after['free'], after['length']], [0, dryRun['length']]);
    await succeed('compare', raw, image);
    assert.equal(
      'x-file-use' in (JSON.parse(await succeed('info', '--output=json', image)) as object),
      false,
    );
  }));

test('explain tells of internal snapshots', () =>
  withFolder(async (folder) => {
    const image = join(folder, 'image');
    await succeed('create', '-q', '-f', 'qcow2', image, '1M');
    await succeed('snapshot', '-c', 'before', image);
    assert.match(await succeed('explain', image), /has 1 internal snapshot\n/);
  }));

test('commit -b takes a name as the overlay sees it, not as the shell does', () =>
  withFolder(async (folder) => {
    // So deep that what is seen from here is not there, seen from the overlay.
    const deep = join(folder, 'a/b/c/d/e/f/g/h');
    mkdirSync(deep, { recursive: true });
    const [base, top] = [join(deep, 'base.qcow2'), join(deep, 'top.qcow2')];
    await succeed('create', '-f', 'qcow2', base, '1M');
    await succeed('create', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', top);
    const here = relative(process.cwd(), top);
    for (const name of ['base.qcow2', base]) await succeed('commit', '-b', name, here);
    const asHere = relative(process.cwd(), base);
    const { code, stderr } = await img('commit', '-b', asHere, here);
    assert.equal(code, 1);
    assert.match(stderr, /Did not find '.*base\.qcow2' in the backing chain/);
  }));

test('convert -n -B copies all into an output that has no backing file', () =>
  withFolder(async (folder) => {
    const path = (name: string): string => join(folder, name);
    await succeed('create', '-f', 'raw', path('base'), '1M');
    writeFileSync(path('base'), Buffer.alloc(MiB, 7));
    await succeed('create', '-f', 'qcow2', '-b', path('base'), '-F', 'raw', path('top'));
    await succeed('create', '-f', 'qcow2', path('out'), '1M');
    await succeed('convert', '-O', 'qcow2', '-n', '-B', path('base'), path('top'), path('out'));
    await succeed('compare', path('top'), path('out'));
  }));
