import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { createRealHost } from '../../host/real.js';
import { RealClock } from '../../host/real-clock.js';
import { queryQmpSchema } from '../../wire/qmp/introspect.js';
import { command, CommandRegistry, QmpError } from '../../wire/qmp/registry.js';
import { QmpHub } from '../../wire/qmp/hub.js';
import { QmpSession } from '../../wire/qmp/session.js';
import { BlockdevOptions } from '../../schema/block-types.js';
import { any, arrayOf, bool, int, optional, required, str, struct } from '../../schema/types.js';
import { PairedSocket } from '../../../test/kit/socket-pair.js';
import { parseCommandLine, splitWords, type ValueKind } from './command-line.js';
import { type ShellIo, shellMain } from './main.js';

const NONE = struct('none', {});

/** A server with a few commands, and a shell's surroundings that lead to it. */
function surroundings(input: PassThrough): {
  io: ShellIo;
  hub: QmpHub;
  output: () => string;
  error: () => string;
} {
  const registry = new CommandRegistry();
  const hub = new QmpHub(registry, new RealClock());
  const echo = struct('echo', { text: optional(str), n: optional(int), flag: optional(bool) });
  registry.register(command('echo', echo), (args) => ({ ...args }));
  registry.register(command('add', struct('add', { id: required(str) })), ({ id }) => {
    hub.emit('ADDED', { id });
  });
  registry.register(
    command('transaction', struct('transaction', { actions: required(arrayOf(any)) })),
    ({ actions }) => ({ actions }),
  );
  registerJobs(registry, hub);
  registry.register(command('blockdev-add', BlockdevOptions), (options) => ({ ...options }));
  registry.register(command('query-commands', NONE), () => registry.names().map((name) => ({ name })));
  registry.register(command('query-qmp-schema', NONE), () => queryQmpSchema(registry));
  registry.register(
    command('human-monitor-command', struct('hmc', { 'command-line': required(str) })),
    ({ 'command-line': line }) => (line === 'info nothing' ? '' : `you said ${line}\r\n`),
  );
  const [ours, theirs] = PairedSocket.pair();
  const session = new QmpSession(hub, theirs);
  registry.register(command('quit', NONE), () => void setTimeout(() => session.end(), 5));
  registry.register(command('vanish', NONE), () => session.end());
  registry.register(command('hang', NONE), () => new Promise(() => undefined));
  const host = { ...createRealHost() };
  host.net = {
    connect: async () => ours,
    secure: () => assert.fail('no TLS'),
    listen: () => assert.fail('the shell does not listen'),
  };
  const [output, error] = [new PassThrough(), new PassThrough()];
  const texts = ['', ''];
  output.on('data', (chunk: Buffer) => void (texts[0] += chunk.toString()));
  error.on('data', (chunk: Buffer) => void (texts[1] += chunk.toString()));
  return {
    io: { host, input, output, error },
    hub,
    output: () => texts[0] ?? '',
    error: () => texts[1] ?? '',
  };
}

/** A job is asked for once while it runs; then it ends, unless it has another status. */
function registerJobs(registry: CommandRegistry, hub: QmpHub): void {
  const jobs = new Map<string, { status: string; endsItself: boolean; error?: string }>();
  const start = struct('start', {
    ...{ id: required(str), status: optional(str), error: optional(str), 'auto-finalize': optional(bool) },
  });
  registry.register(command('start', start), (args) => {
    const { id, status = 'running', error, 'auto-finalize': endsItself = status === 'running' } = args;
    jobs.set(id, { status, endsItself, ...(error !== undefined && { error }) });
    hub.emit('JOB_STATUS_CHANGE', { id, status });
  });
  const end = (id: string): void => {
    const job = jobs.get(id);
    if (job?.endsItself !== true) return;
    jobs.delete(id);
    hub.emit('BLOCK_JOB_COMPLETED', { device: id, ...(job.error !== undefined && { error: job.error }) });
  };
  const named = struct('named', { id: optional(str), device: optional(str) });
  for (const name of ['job-complete', 'block-job-cancel'])
    registry.register(command(name, named), ({ id, device }) => {
      const job = jobs.get(id ?? device ?? '');
      if (!job) throw new QmpError('GenericError', 'no such job');
      // One look later.
      setImmediate(() => (job.endsItself = true));
    });
  registry.register(command('query-jobs', NONE), () => {
    const progress = { type: 'stream', 'current-progress': 512, 'total-progress': 1024 };
    const infos = [...jobs].map(([id, { endsItself: _, ...job }]) => ({ id, ...progress, ...job }));
    setImmediate(() => [...jobs.keys()].forEach(end));
    return infos;
  });
  registry.register(command('query-block-jobs', NONE), () =>
    [...jobs].map(([device, { endsItself }]) => ({ device, 'auto-finalize': endsItself })),
  );
}

async function runLines(lines: string, ...options: string[]): Promise<{ status: number; output: string[] }> {
  const input = new PassThrough();
  const { io, output } = surroundings(input);
  input.end(lines);
  const status = await shellMain([...options, '/qmp.sock'], io);
  return { status, output: output().split('\n').slice(0, -1) };
}

test('words end at spaces outside of quotes and brackets', () => {
  assert.deepEqual(splitWords(`a  b=c d={"x": [1, 2]} e="f g" h='i "j'`), [
    'a',
    'b=c',
    'd={"x": [1, 2]}',
    'e="f g"',
    `h='i "j'`,
  ]);
  assert.throws(() => splitWords('a b="c'), { message: 'No closing "' });
  assert.throws(() => splitWords('a b={"c": 1'), { message: 'No closing bracket' });
});

test('a line becomes a request', () => {
  assert.deepEqual(parseCommandLine('query-block'), { execute: 'query-block' });
  assert.deepEqual(
    parseCommandLine(`c a=1 b=-2.5 t=true n=null s=x=y q="1" u='a b' o.p.q=z o.r={'k': [1]} l=[1,2] z=007`),
    {
      execute: 'c',
      arguments: {
        ...{ a: 1, b: -2.5, t: true, n: null, s: 'x=y', q: '1', u: 'a b' },
        o: { p: { q: 'z' }, r: { k: [1] } },
        l: [1, 2],
        z: '007',
      },
    },
  );
  assert.deepEqual(parseCommandLine(' {"execute": "x", "id": 1} '), { execute: 'x', id: 1 });
  const wrong: Array<[string, string]> = [
    ['a=1', "'a=1' is no command: its name comes first"],
    ['c word', "Expected a key=value pair, got 'word'"],
    ['c a=1 a=2', "Cannot set 'a' multiple times"],
    ['c a=1 a.b=2', "Cannot use 'a' as both object and non-object key"],
    ['{"execute"', 'JSON parse error, premature EOI'],
  ];
  for (const [line, message] of wrong) assert.throws(() => parseCommandLine(line), { message });
});

test('values may be Python literals', () => {
  const read = (word: string): unknown => parseCommandLine(`c a=${word}`)['arguments'];
  const cases: Array<[string, unknown]> = [
    ["{'a': True, 'b': [None, False]}", { a: true, b: [null, false] }],
    [`{'True': 'None, True', "x": 1,}`, { True: 'None, True', x: 1 }],
    ['[1, -2.5, ]', [1, -2.5]],
    [`{'it\\'s': 0}`, { "it's": 0 }],
    ['True', true],
    ['FALSE', false],
  ];
  for (const [word, a] of cases) assert.deepEqual(read(word), { a }, word);
  assert.throws(() => read('{a: 1}'), { kind: 'invalid' });
  assert.deepEqual(parseCommandLine("{'execute': 'x', 'arguments': {'on': True}}"), {
    execute: 'x',
    arguments: { on: true },
  });
});

test('what is known of an argument decides how its word is read', () => {
  const read = (word: string, ...kinds: ValueKind[]): unknown =>
    (parseCommandLine(`c a=${word}`, () => new Set(kinds))['arguments'] as { a: unknown }).a;
  assert.equal(read('1', 'string'), '1');
  assert.equal(read('true', 'string'), 'true');
  assert.equal(read('null', 'string'), 'null');
  assert.equal(read('1', 'number'), 1);
  assert.equal(read('on', 'boolean'), true);
  assert.equal(read('off', 'boolean'), false);
  assert.equal(read('x', 'number'), 'x');
});

test('commands a line, answers and events a line', async () => {
  const { status, output } = await runLines(
    '# a comment\n\necho text=1 n=2 flag=on\nadd id=7\n{"execute": "echo", "id": "own"}\r\nquit\n',
  );
  assert.equal(status, 0);
  assert.equal(output[0], '{"return": {"text": "1", "n": 2, "flag": true}}');
  assert.match(output[1] ?? '', /^\{"timestamp": \{.*\}, "event": "ADDED", "data": \{"id": "7"\}\}$/);
  assert.deepEqual(output.slice(2), ['{"return": {}}', '{"return": {}, "id": "own"}', '{"return": {}}']);
});

test('a transaction is sent as one request, or not at all', async () => {
  const actions = '[{"type": "echo", "data": {"text": "1"}}, {"type": "abort", "data": {}}]';
  for (const text of [
    'transaction(\n  echo text=1\n\n# why\n abort\n)\n',
    'transaction( echo text=1\nabort )\n',
    'transaction(echo text=1\nabort\n)\n',
  ]) {
    const { status, output } = await runLines(text + 'echo n=2\n');
    assert.deepEqual(output, [`{"return": {"actions": ${actions}}}`, '{"return": {"n": 2}}'], text);
    assert.equal(status, 0);
  }
  const one = await runLines('transaction( echo n=1 )\n');
  assert.deepEqual(one.output, ['{"return": {"actions": [{"type": "echo", "data": {"n": 1}}]}}']);
  const bad = await runLines(
    'transaction(\necho text\nadd id=7\n)\ntransaction(\n{"execute": "x"}\n)\necho n=1\n',
  );
  assert.equal(bad.status, 1);
  assert.deepEqual(bad.output, [
    "Expected a key=value pair, got 'text'",
    'The transaction was not sent: one of its actions could not be read',
    'an action of a transaction is COMMAND KEY=VALUE ...',
    'The transaction was not sent: one of its actions could not be read',
    '{"return": {"n": 1}}',
  ]);
  const open = await runLines('echo n=1\ntransaction(\nadd id=7\n');
  assert.equal(open.status, 1);
  assert.deepEqual(open.output.slice(1), ["transaction( has no closing ')': nothing of it was sent"]);
});

test('a command that fails makes the status 1, and the others run', async () => {
  const { status, output } = await runLines('add\nnope x=1\necho x\n{"id": 1}\necho text=z\n');
  assert.equal(status, 1);
  assert.deepEqual(output, [
    `{"error": {"class": "GenericError", "desc": "Parameter 'id' is missing"}}`,
    '{"error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}',
    "Expected a key=value pair, got 'x'",
    `{"id": 1, "error": {"class": "GenericError", "desc": "QMP input lacks member 'execute'"}}`,
    '{"return": {"text": "z"}}',
  ]);
});

test('the server ends by itself', async () => {
  const { status, output } = await runLines('vanish\necho\n');
  assert.equal(status, 1);
  assert.deepEqual(output, ['The server closed the connection']);
});

test('exit leaves the rest', async () => {
  assert.deepEqual(await runLines('exit\nnope\n'), { status: 0, output: [] });
});

test('pretty printing', async () => {
  const { output } = await runLines('echo n=1\n', '-p');
  assert.deepEqual(output, ['{', '    "return": {', '        "n": 1', '    }', '}']);
});

test('the human monitor', async () => {
  const { status, output } = await runLines('info block\ninfo nothing\n', '-H');
  assert.deepEqual({ status, output }, { status: 0, output: ['you said info block'] });
});

test('help', async () => {
  const { output } = await runLines(
    'help\nhelp add\nhelp quit\nhelp echo flag\nhelp echo zz\nhelp blockdev-add cache\nhelp block\nhelp zz\n',
  );
  const text = output.join('\n');
  assert.match(text, /^help \[COMMAND \[KEY\]\]/m);
  assert.match(text, /^add\n {2}id=str +the thing's name$/m);
  assert.match(text, /^quit {2}ends the server\n {2}takes no arguments$/m);
  assert.match(text, /^true +false$/m);
  assert.match(text, /^echo has no argument 'zz'$/m);
  assert.match(text, /^ {2}\[direct=bool\]$/m);
  assert.match(text, /^blockdev-add {2,}opens an image/m);
  assert.match(text, /^The command zz has not been found$/m);
});

test('mistakes on the command line', async () => {
  const { io, error } = surroundings(new PassThrough());
  assert.equal(await shellMain([], io), 1);
  assert.match(error(), /one SOCKET is needed\nusage: livedisk shell/);
  assert.equal(await shellMain(['-x', 'a'], io), 1);
  assert.match(error(), /unknown option '-x'/);
  assert.equal(await shellMain(['localhost:0'], io), 1);
  assert.match(error(), /'localhost:0' has no port in 1\.\.65535/);
  io.host = createRealHost();
  assert.equal(await shellMain(['/nonexistent/qmp.sock'], io), 1);
  assert.match(error(), /No such file or directory/);
});

/** The program with a command as its arguments. */
async function runOnce(...args: string[]): Promise<{ status: number; output: string; error: string }> {
  const { io, output, error } = surroundings(new PassThrough());
  const status = await shellMain(args, io);
  return { status, output: output(), error: error() };
}

test('one command as arguments', async () => {
  assert.deepEqual(await runOnce('/s', 'echo', 'text=a b', 'n=2', 'flag=on'), {
    status: 0,
    output: '{"return": {"text": "a b", "n": 2, "flag": true}}\n',
    error: '',
  });
  const failed = await runOnce('/s', 'nope');
  assert.equal(failed.status, 1);
  assert.match(failed.output, /CommandNotFound/);
  assert.equal((await runOnce('/s', '-p', 'echo', 'n=1')).output.split('\n').length, 6);
  assert.equal((await runOnce('-H', '/s', 'info', 'block', '-v')).output, 'you said info block -v\n');
  assert.equal(
    (await runOnce('/s', '{"execute": "echo",', '"arguments": {"n": 3}}')).output,
    '{"return": {"n": 3}}\n',
  );
  assert.equal((await runOnce('/s', 'quit')).status, 0);
  assert.deepEqual(await runOnce('/s', 'echo', 'word'), {
    status: 1,
    output: "Expected a key=value pair, got 'word'\n",
    error: '',
  });
  assert.match((await runOnce('/s', 'help', 'quit')).output, /ends the server/);
});

test('verbose shows what is sent', async () => {
  assert.equal(
    (await runOnce('-v', '/s', 'echo', 'n=1')).output,
    '{"execute": "echo", "arguments": {"n": 1}}\n{"return": {"n": 1}}\n',
  );
});

test('without negotiation the server tells that it waits for that', async () => {
  const { status, output } = await runOnce('-N', '/s', 'query-commands');
  assert.equal(status, 1);
  assert.match(output, /Expecting capabilities negotiation with 'qmp_capabilities'/);
});

test('a wait ends with the job, or when it waits itself', async () => {
  const run = (job: string, ...command: string[]): ReturnType<typeof runOnce> =>
    runOnce('/s', '--wait', job, ...command);
  const good = await run('fine', 'start', 'id=fine');
  assert.deepEqual([good.status, good.output], [0, '{"return": {}}\n']);
  assert.match(good.error, /^fine \(stream\) running +50% .*\nfine completed\n$/s);
  const bad = await run('bad', 'start', 'id=bad', 'error=No space left on device');
  assert.equal(bad.status, 1);
  assert.match(bad.error, /^bad failed: No space left on device$/m);
  const ready = await run('r', 'start', 'id=r', 'status=ready');
  assert.deepEqual(
    [ready.status, ready.error.split('\n').at(-2)],
    [0, 'r ready: job-complete or block-job-cancel ends it'],
  );
  const pending = await run('p', 'start', 'id=p', 'status=pending');
  assert.deepEqual(
    [pending.status, pending.error.split('\n').at(-2)],
    [0, 'p pending: job-finalize or job-cancel ends it'],
  );
  // It goes on by itself.
  const passing = await run('q', 'start', 'id=q', 'status=pending', 'auto-finalize=true');
  assert.match(passing.error, /^q completed$/m);
  const concluded = await run('c', 'start', 'id=c', 'status=concluded', 'error=Bad');
  assert.deepEqual([concluded.status, concluded.error.split('\n').at(-2)], [1, 'c failed: Bad']);
  assert.deepEqual(await run('none'), {
    status: 1,
    output: '',
    error: "livedisk shell: Job 'none' not found\n",
  });
});

test('a wait for a job that was told to end is for its end', async () => {
  const start = 'start id=j status=ready\nwait j\n';
  for (const end of [
    'job-complete id=j',
    'block-job-cancel device=j',
    '{"execute": "job-complete", "arguments": {"id": "j"}}',
  ]) {
    const { status, output } = await runLines(`${start}${end}\nwait j\nquery-jobs\n`);
    assert.equal(status, 0);
    const told = output.filter((line) => /^j (ready: |completed)/.test(line));
    assert.deepEqual(told, ['j ready: job-complete or block-job-cancel ends it', 'j completed'], end);
    assert.equal(output.at(-1), '{"return": []}');
  }
  // One that was refused has told nobody, and what ended once is not what is started anew.
  const refused = await runLines(`${start}job-complete id=other\nwait j\n`);
  assert.match(refused.output.at(-1) ?? '', /^j ready: /);
  const again = await runLines(`${start}job-complete id=j\nwait j\nstart id=j status=created\n${start}`);
  assert.match(again.output.at(-1) ?? '', /^j ready: /);
});

test('what a server answers to a wait is a message', async () => {
  const { status, error } = await runOnce('-N', '/s', '--wait', 'j');
  assert.equal(status, 1);
  assert.match(error, /^livedisk shell: Expecting capabilities negotiation with 'qmp_capabilities'/);
});

/** Types into a terminal and waits for what it shows. */
async function typing(
  steps: ReadonlyArray<readonly [string, RegExp]>,
): Promise<{ status: number; shown: string }> {
  const input = Object.assign(new PassThrough(), { isTTY: true });
  const { io, output } = surroundings(input);
  const status = shellMain(['/qmp.sock'], io);
  for (const [keys, expected] of [['', /\(qmp\) /] as const, ...steps]) {
    const from = output().length;
    input.write(keys);
    for (let turn = 0; !expected.test(output().slice(keys === '' ? 0 : from)); turn++) {
      assert(turn < 400, `no ${String(expected)} after ${JSON.stringify(keys)}: ${output()}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  return { status: await status, shown: output() };
}

test('at a terminal: a greeting, a prompt, answers, completion', async () => {
  const { status, shown } = await typing([
    ['echo n=1\r', /\{"return": \{"n": 1\}\}\r?\n.*\(qmp\) /s],
    ['ec\t', /ho/],
    [' fl\t', /ag=/],
    ['tr\t', /ue/],
    ['\r', /\{"return": \{"flag": true\}\}/],
    ['blockdev-add driver=null-c\t', /l-co/],
    [' latency\t', /-ns=/],
    ['5 cache.di\t', /rect=/],
    ['on\r', /\{"return": .*"latency-ns": 5.*\}/],
    ['add id=x\r', /"event": "ADDED"/],
    ['start id=job7 status=ready\r', /"return"/],
    ['job-cancel id=\t', /job7/],
    ['\x15wait jo\t', /b7/],
    ['\r', /job7 ready/],
    ['\x12n=1\r', /\{"return": \{"n": 1\}\}/],
    ['exit\r', /\n$/],
  ]);
  assert.equal(status, 0);
  assert.match(shown, /^Connected to QMP server 7\.2\.22 \(livedisk /);
  assert.match(shown, /"cache": \{"direct": true\}/);
});

/** What moves a cursor, turns the direction of writing, or is not seen. */
const UNSEEN = /[^\n\P{Cc}]|[\p{Cf}\p{Default_Ignorable_Code_Point}]/u;
const MOVER = '\u001b]0;t\u0007\u009b2J\u202e\u200b';

test('what a server says moves no cursor: its monitor, its errors, its jobs', async () => {
  for (const args of [
    ['-H', '/s', `info ${MOVER}`],
    ['-H', '/s', 'fail', MOVER],
    ['/s', `echo`, `text=${MOVER}`],
    ['-v', '/s', `echo`, `text=${MOVER}`],
    ['/s', '--wait', MOVER, 'start', `id=${MOVER}`],
    ['/s', '--wait', MOVER],
    ['/s', MOVER],
  ]) {
    const { output, error } = await runOnce(...args);
    assert.doesNotMatch(output + error, UNSEEN, JSON.stringify(args));
    assert.notEqual(output + error, '');
  }
});

test('at a terminal: a name that would move the cursor is not offered', async () => {
  const { shown } = await typing([
    [`{"execute": "start", "arguments": {"id": "aa\\u001b[2J", "status": "ready"}}\r`, /"return"/],
    ['start id=ab status=ready\r', /"return"/],
    ['job-cancel id=a\t', /id=ab/],
    ['\x15exit\r', /\n$/],
  ]);
  assert.ok(!shown.includes('\u001b[2J'), JSON.stringify(shown));
});

test('at a terminal: quit ends the shell with the server, its end alone is an error', async () => {
  assert.equal((await typing([['quit\r', /"return"/]])).status, 0);
  assert.equal((await typing([['vanish\r', /\n/]])).status, 1);
});

test('at a terminal: Ctrl-C leaves, also while a command hangs', { timeout: 30_000 }, async () => {
  for (const steps of [[], [['hang\r', /hang/] as const]]) {
    const { status, shown } = await typing([...steps, ['\x03', /\n$/]]);
    assert.equal(status, 0);
    assert.doesNotMatch(shown, /closed/);
  }
});
