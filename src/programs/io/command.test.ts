import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { allDrivers } from '../../drivers/index.js';
import { createRealHost } from '../../host/real.js';
import { takesDirect } from '../../../test/kit/direct-io.js';
import { imageOf, type ToolAnswer, toolAnswer } from '../../../test/kit/tool-answer.js';
import { withFolder } from '../../../test/kit/test-disk.js';
import { getopt, shortOptions } from './getopt.js';
import { ioMain } from './main.js';
import { fixed, formatBytes, formatSeconds, parseBytes, parsePattern } from './numbers.js';
import { formatDump, formatReport } from './report.js';

/** Runs commands on an image and leaves out what depends on time. */
async function io(path: string, ...commands: string[]): Promise<ToolAnswer> {
  const answer = await toolAnswer((out) => {
    const args = ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), path];
    return ioMain(args, out, createRealHost(), allDrivers);
  });
  return { ...answer, stdout: answer.stdout.replace(/ops; .*$/gm, 'ops') };
}

function withImage(body: (path: string) => Promise<void>): Promise<void> {
  return withFolder(async (folder) => body(imageOf(folder, 'a.raw', 1024 * 1024)));
}

test('numbers are printed as qemu-io prints them', () => {
  assert.equal(formatBytes(65536), '64 KiB');
  assert.equal(formatBytes(1000), '1000 bytes');
  assert.equal(formatBytes(0.25), '0.250000 bytes');
  assert.equal(formatBytes(1536), '1.500 KiB');
  assert.equal(formatBytes(1.0625 * 1024 * 1024), '1.062 MiB');
  assert.equal(fixed(0.375, 2), '0.38');
  assert.equal(fixed(0.625, 2), '0.62');
  assert.equal(formatSeconds(0.014, false), '00.01 sec');
  assert.equal(formatSeconds(15489.19, false), '4:18:09.19');
  assert.equal(formatSeconds(1, true), '0:00:01.00');
  const transfer = { verb: 'read', offset: 512, lengthBytes: 65536, seconds: 0.5 };
  assert.equal(
    formatReport(transfer, false),
    'read 65536/65536 bytes at offset 512\n64 KiB, 1 ops; 00.50 sec (128 KiB/sec and 2.0000 ops/sec)\n',
  );
  assert.equal(formatReport(transfer, true), '65536,1,0:00:00.50,131072.000,2.000\n');
  assert.equal(formatDump(Buffer.from('aZ @'), 16), '00000010:  61 5a 20 40  aZ..\n');
});

test('sizes and patterns are read as qemu-io reads them', () => {
  assert.equal(parseBytes('1.5k'), 1536);
  assert.equal(parseBytes('0x10'), 16);
  assert.throws(() => parseBytes('1.5'), /non-numeric argument, or extraneous/);
  assert.throws(() => parseBytes('-1'), /non-numeric argument/);
  assert.throws(() => parseBytes('16E'), /argument too large -- 16E/);
  assert.equal(parsePattern('010'), 8);
  assert.equal(parsePattern('0xff'), 255);
  for (const wrong of ['256', 'x', '-1', '1x', '']) assert.throws(() => parsePattern(wrong), /valid pattern/);
});

test('options are split as getopt does it', () => {
  assert.deepEqual(getopt(['0', '-qP', '7', '512', '--', '-x'], shortOptions('qP:')), {
    options: [
      { name: 'q', value: '' },
      { name: 'P', value: '7' },
    ],
    operands: ['0', '512', '-x'],
  });
  const long = [{ short: 's', long: 'start-offset', takesValue: true }];
  assert.deepEqual(
    getopt(['--start=5', '-s6', '--start-offset', '7'], long).options.map(({ value }) => value),
    ['5', '6', '7'],
  );
  assert.equal(getopt(['-z'], long).problem?.kind, 'unknown');
  assert.equal(getopt(['-s'], long).problem?.kind, 'missing-value');
});

test('what is written with a pattern is read back with it, and only with it', () =>
  withImage(async (path) => {
    await fc.assert(
      fc.asyncProperty(
        fc.nat(1024 * 1024 - 1),
        fc.integer({ min: 1, max: 100_000 }),
        fc.nat(255),
        fc.constantFrom('', 'v', 'aio'),
        async (offset, wanted, pattern, form) => {
          const length = Math.min(wanted, 1024 * 1024 - offset);
          const [write, read] = form === 'aio' ? ['aio_write', 'read'] : [`write${form}`, `read${form}`];
          const range = `${offset} ${length}`;
          const good = await io(
            path,
            `${write} -P ${pattern} ${range}`,
            'aio_flush',
            `${read} -P ${pattern} ${range}`,
          );
          assert.equal(good.code, 0, good.stdout);
          const bad = await io(path, `${read} -P ${(pattern + 1) % 256} ${range}`);
          assert.equal(bad.code, 1);
          assert.match(
            bad.stdout,
            new RegExp(`^Pattern verification failed at offset ${offset}, ${length} bytes`),
          );
        },
      ),
      { numRuns: 20 },
    );
  }));

test('a device of characters is a pattern as long as the write', () =>
  withImage(async (path) => {
    const answer = await io(path, 'write -q -P 1 0 64k', 'write -q -s /dev/zero 4k 8k', 'read -q -P 0 4k 8k');
    assert.deepEqual(answer, { code: 0, stdout: '', stderr: '' });
    const random = await io(path, 'write -q -s /dev/urandom 4k 8k', 'read -q -P 0 4k 8k');
    assert.equal(random.code, 1);
  }));

test('zeroes, discards, a pattern file and a new size', () =>
  withImage(async (path) => {
    const source = join(path, '..', 'pattern');
    writeFileSync(source, 'abc');
    const answer = await io(
      path,
      'write -q -P 1 0 1M',
      'write -q -z 4k 4k',
      'write -qzu 8k 4k',
      'discard -q 12k 4k',
      `write -q -s ${source} 20k 512`,
      'read -q -P 0 4k 12k',
      'read -q -P 1 16k 4k',
      'read -v 20480 5',
      'truncate 2M',
      'length',
      'read -q -P 0 1M 1M',
    );
    assert.deepEqual(answer, {
      code: 0,
      stdout: '00005000:  61 62 63 61 62  abcab\nread 5/5 bytes at offset 20480\n5 bytes, 1 ops\n2 MiB\n',
      stderr: '',
    });
  }));

test('wrong commands are refused in their words, and the others still run', () =>
  withImage(async (path) => {
    const answer = await io(
      path,
      'read 0',
      'read x 1',
      'read 0 3G',
      'read 2M 1',
      'write -n 0 1',
      'write -c 0 64k',
      'open x',
      'frob',
      'read -z 0 1',
      'aio_read 2M 1',
      'aio_flush',
      'resume x',
      'quit',
      'length',
    );
    assert.deepEqual(answer, {
      code: 1,
      stdout: [
        'Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- x',
        'length cannot exceed 2147483136, given 3G',
        'read failed: Input/output error',
        '-n requires -z to be specified',
        'write failed: Operation not supported',
        'read [-abCqv] [-P pattern [-s off] [-l len]] off len -- reads a number of bytes at a specified offset',
        'readv failed: Input/output error',
        'Could not resume request: Operation not supported',
        '',
      ].join('\n'),
      stderr: [
        'bad argument count 1 to read, expected at least 2 arguments',
        "qemu-io: file open already, try 'help close'",
        'command "frob" not found',
        "read: invalid option -- 'z'",
        '',
      ].join('\n'),
    });
  }));

test('commands come from lines when none is given, until quit', () =>
  withImage(async (path) => {
    async function* lines(): AsyncIterable<string> {
      yield* ['length', '', 'quit', 'length'];
    }
    const answer = await toolAnswer((out) =>
      ioMain(['-r', '-f', 'raw', path], out, createRealHost(), allDrivers, lines()),
    );
    assert.deepEqual(answer, { code: 0, stdout: 'qemu-io> 1 MiB\nqemu-io> qemu-io> ', stderr: '' });
  }));

test('a read-only disk is not written', () =>
  withImage(async (path) => {
    const answer = await toolAnswer((out) =>
      ioMain(['-r', '-f', 'raw', '-c', 'write 0 1', path], out, createRealHost(), allDrivers),
    );
    assert.deepEqual(answer, { code: 1, stdout: '', stderr: 'qemu-io: Block node is read-only\n' });
  }));

test('an image that was opened to be read stays so when it is reopened', () =>
  withImage(async (path) => {
    const args = ['-r', '-f', 'raw', '-c', 'reopen', '-c', 'write 0 1', path];
    const answer = await toolAnswer((out) => ioMain(args, out, createRealHost(), allDrivers));
    assert.deepEqual(answer, { code: 1, stdout: '', stderr: 'qemu-io: Block node is read-only\n' });
  }));

test('with -s what is written is gone with the disk; the image stays as it was', () =>
  withImage(async (path) => {
    const run = (...args: string[]) =>
      toolAnswer((out) => ioMain([...args, path], out, createRealHost(), allDrivers));
    const quiet = { code: 0, stdout: '', stderr: '' };
    const write = ['-c', 'write -q -P 5 0 64k', '-c', 'read -q -P 5 0 64k'];
    assert.deepEqual(await run('-s', '-f', 'raw', ...write), quiet);
    assert.deepEqual(await run('-f', 'raw', '-c', 'read -q -P 0 0 1M'), quiet);
    const opened = ['-c', `open -s -o driver=raw ${path}`, ...write, '-c', 'close'];
    const answer = await toolAnswer((out) => ioMain(opened, out, createRealHost(), allDrivers));
    assert.deepEqual(answer, quiet);
    assert.deepEqual(await run('-f', 'raw', '-c', 'read -q -P 0 0 1M'), quiet);
  }));

test('memory where O_DIRECT cannot use it, and modes of requests', () =>
  withImage(async (path) => {
    const commands = ['-c', 'write -q -P 5 512 1k', '-c', 'read -q -P 5 512 1k'];
    const run = (...args: string[]) =>
      toolAnswer((out) =>
        ioMain([...args, '-f', 'raw', ...commands, path], out, createRealHost(), allDrivers),
      );
    const buffered = [['-m'], ['-i', 'io_uring']];
    const direct = [
      ['-m', '-n'],
      ['-k', '-n'],
      ['--aio=native', '-t', 'none'],
    ];
    const hasDirect = await takesDirect(createRealHost(), path);
    for (const args of hasDirect ? [...buffered, ...direct] : buffered)
      assert.deepEqual(await run(...args), { code: 0, stdout: '', stderr: '' }, args.join(' '));
    assert.deepEqual(await run('-k'), {
      code: 1,
      stdout: '',
      stderr: `qemu-io: can't open device ${path}: aio=native was specified, but it requires cache.direct=on, which was not specified.\n`,
    });
    // Values are looked at in their order, before what is wrong behind them.
    assert.deepEqual(await run('-d', 'bad', '--nothing'), {
      code: 1,
      stdout: '',
      stderr: 'qemu-io: Invalid discard option: bad\n',
    });
  }));
