import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { livediskWords, scratch } from '../kit/program.js';
import { run, skipWithout } from './daemon.js';
import { converse, hasQemu } from './machine-side.js';

/** Points have names of each side's own: what is compared is what is said of names that nobody has. */
const EVENTS = '# none of these is there\n\nnone_such\n-none_such_either\nnone_such*\n';

test('--trace is taken, and refused, as by QEMU’s programs', { timeout: 300_000 }, (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-io', 'qemu-nbd', 'qemu-storage-daemon')) return;
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'disk.img', '64k');
  writeFileSync(join(folder, 'events'), EVENTS);
  const both = (program: string, ...args: string[]): void => {
    const [theirs, ours] = [
      spawnSync(program, args, { cwd: folder, encoding: 'utf8' }),
      spawnSync(process.execPath, livediskWords('--as', program, program.slice('qemu-'.length), ...args), {
        cwd: folder,
        encoding: 'utf8',
      }),
    ];
    const words = `${program} ${args.join(' ')}`;
    // One space more where a file cannot be read.
    const told = ({ stderr, status }: typeof ours): unknown => ({
      stderr: stderr.replace(/(qemu-[a-z-]+:) (?=gone)/, '$1'),
      status,
    });
    assert.deepEqual(told(ours), told(theirs), words);
  };
  for (const option of [
    ...['none_such', '-none_such', 'none_such*', 'enable=none_such,file=log', 'events=events', 'foo=1'],
    ...['events=gone', 'file=/none/log', ''],
  ])
    both('qemu-img', '-T', option, 'info', '-f', 'raw', 'disk.img');
  both('qemu-img', '--trace', 'none_such', '--trace=file=log', 'info', '-f', 'raw', 'disk.img');
  both('qemu-img', '-T');
  for (const option of ['none_such', 'foo=1']) {
    both('qemu-io', '-T', option, '-f', 'raw', '-c', 'quit', 'disk.img');
    both('qemu-nbd', '--trace', option, '--list', '-k', join(folder, 'gone.sock'));
    both('qemu-storage-daemon', '--trace', option, '--blockdev', 'null-co');
  }
});

test('-d and -D are taken, and refused, as by qemu-system', { timeout: 120_000 }, (t) => {
  if (!hasQemu) return t.skip('not installed: qemu-system-x86_64');
  const folder = scratch(t);
  const program = 'qemu-system-x86_64';
  // What is wrong is told before the monitor is there, and else `quit` ends it.
  const machine = [
    ...['-M', 'none', '-nodefaults', '-display', 'none'],
    ...['-monitor', 'none', '-qmp', 'stdio'],
  ];
  const input = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n';
  const run = (name: string, words: readonly string[], args: readonly string[]): unknown => {
    const cwd = join(folder, name);
    mkdirSync(cwd);
    const [first = '', ...rest] = words;
    const { status, stderr } = spawnSync(first, [...rest, ...args, ...machine], {
      cwd,
      encoding: 'utf8',
      input,
    });
    const files = readdirSync(cwd).map((file) => {
      const lines = readFileSync(join(cwd, file), 'utf8').split('\n');
      return {
        name: file.replace(/\d+/, 'N'),
        isOfTwoCommands: lines.filter((line) => /^handle_qmp/.test(line)).length === 2,
      };
    });
    rmSync(cwd, { recursive: true });
    return { status, stderr: stderr.replace(/^handle_qmp_command .*/gm, 'handle_qmp_command'), files };
  };
  const ours = [process.execPath, ...livediskWords('--as', program, 'run')];
  for (const line of [
    ...['-D log', '-d int -D log', '-d trace:handle_qmp_command', '-d trace:handle_qmp_command -D log'],
    ...[
      '-d trace:none_such',
      '-trace handle_qmp_command -D log',
      '-D log -trace handle_qmp_command,file=other',
    ],
    ...[
      '-d int -d trace:handle_qmp_* -D other -D a%d',
      '-d trace:handle_qmp_command -d int',
      '-d bogus',
      '-d int,',
    ],
    ...[
      '-d trace:',
      '-d tid',
      '-d all -D log',
      '-d tid,trace:handle_qmp_command -D a%d',
      '-D a%d%d',
      '-D a%s',
      '-D a%',
    ],
    ...[
      '-D /none/log',
      '-D .',
      '-d bogus -d int',
      '-d int,cpu,exec,guest_errors,unimp,nochain,strace,page,plugin',
    ],
  ])
    assert.deepEqual(run('ours', ours, line.split(' ')), run('theirs', [program], line.split(' ')), line);
});

test('trace commands of both monitors answer as QEMU does', { timeout: 120_000 }, async (t) => {
  if (!hasQemu) return t.skip('not installed: qemu-system-x86_64');
  const folder = scratch(t);
  const names = ['none_such', 'none_such*', 'job_state_transition', 'job_state_trans*', 'handle_hmp_command'];
  const commands = [
    ...names.map((name) => ['trace-event-get-state', { name }] as const),
    ...names.map((name) => ['trace-event-set-state', { name: `${name}`, enable: false }] as const),
    ['trace-event-get-state', { name: 'job_*_transition', vcpu: 3 }] as const,
    ['trace-event-set-state', { name: 'job_state_transition', vcpu: 0, enable: true }] as const,
    ['trace-event-set-state', { name: 'job_state_transition' }] as const,
    ['trace-event-set-state', { name: 'job_state_t*', enable: true, 'ignore-unavailable': true }] as const,
    ...['info trace-events job_state*', 'info trace-events none_such', 'info trace-events none_such*'],
    ...['trace-event job_state_transition off', 'trace-event none_such on', 'trace-event none_such* on'],
    ...['info trace-events job_state_transition', 'info trace-events job_state_transition 0'],
    ...['trace-event', 'trace-event job_state_transition', 'trace-event job_state_transition maybe'],
    ...['trace-event job_state_transition on 0', 'trace-event job_state_transition on x'],
    ...['help trace-event', 'help info trace-events'],
  ];
  const args = ['-M', 'none'];
  const theirs = await converse('theirs', folder, args, commands);
  const ours = await converse('ours', folder, args, commands);
  for (const [i, message] of theirs.entries()) assert.deepEqual(ours[i], message, `answer ${i}`);
});
