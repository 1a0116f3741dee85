// `npm run proof NAME [-- --processes N]`: a long proof in pieces. What is done is kept in .proof/NAME.json, so it goes
// on where it was stopped; another commit begins anew. The result becomes a line of docs/PROOFS.md.
import { spawn, spawnSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';

const SIM = ['--import', 'tsx', 'test/sim/main.ts'];
const SEQUENCES = ['--import', 'tsx', 'test/sim/sequences-main.ts'];
const SEEDS_A_PIECE = 50;
const FUZZ_RUNS_A_PIECE = 2000;
const MOVES_A_PIECE = 500;
const PLANS_A_PIECE = 50;

/** Conversations with peers who say anything. */
const conversations = (side, what, amount = 'conversations') => ({
  what,
  pieces: (seed) =>
    Array.from({ length: 10 }, (_, i) => {
      const first = String(seed + i * FUZZ_RUNS_A_PIECE);
      const sample = ['--seed', first, '--runs', String(FUZZ_RUNS_A_PIECE)];
      return {
        name: `runs from ${first}`,
        args: ['--import', 'tsx', 'test/fuzz/main.ts', side, ...sample],
      };
    }),
  count: /^(\d+) conversations passed/m,
  amount: ([count]) => `${count} ${amount}`,
});

/** A test, so many times, each time with the next seed. */
const rounds = (length, file, seedName, env) => (seed) =>
  Array.from({ length }, (_, i) => ({
    name: `seed ${seed + i}`,
    args: ['--import', 'tsx', '--test', file],
    env: { ...env, [seedName]: String(seed + i) },
  }));

/** What a proof does: its pieces, each the arguments and environment of a Node process, and what its output counts. */
const PROOFS = {
  simulation: {
    what: 'seeds of the simulated machine, each with jobs, snapshots, late users, full disks and power losses',
    pieces: (seed) =>
      Array.from({ length: 10_000 / SEEDS_A_PIECE }, (_, i) => ({
        name: `seeds from ${seed + i * SEEDS_A_PIECE}`,
        args: [...SIM, '--seed', String(seed + i * SEEDS_A_PIECE), '--seeds', String(SEEDS_A_PIECE)],
      })),
    count: /^(\d+) seeds from \d+ passed .* s, (\d+) guest requests$/m,
    amount: ([seeds, requests]) => `${seeds} seeds, ${requests} guest requests`,
  },
  sequences: {
    what: 'all sequences of up to three changes of a disk, the power going at each change of a file',
    pieces: (seed) =>
      listOf([...SEQUENCES, '--list']).map((first) => ({
        name: `beginning with ${first}`,
        args: [...SEQUENCES, '--first', first, '--seed', String(seed)],
      })),
    count: /^(\d+) sequences passed, (\d+) states after a power loss$/m,
    amount: ([sequences, states]) => `${sequences} sequences, ${states} states after a power loss`,
  },
  kills: {
    what: 'each job is killed at random moments (kill -9 of the program), with a guest that writes',
    pieces: rounds(10, 'test/peers/kill-jobs.test.ts', 'KILL_SEED', { KILLS: '5' }),
    count: /(\d+) kills of each job$/m,
    amount: ([kills]) => `${kills} kills of each job`,
  },
  'state-kills': {
    what: 'a daemon with --state that has everything is killed at random moments, and is what it was',
    pieces: rounds(5, 'test/peers/state-kills.test.ts', 'KILL_SEED', { STATE_KILLS: '10' }),
    count: /(\d+) kills of a daemon with a state, (\d+) commands$/m,
    amount: ([kills, commands]) => `${kills} kills, ${commands} commands`,
  },
  'pull-backups': {
    what: 'twenty rounds of backups that a client pulls over NBD, with checkpoints, restarts and a guest that writes',
    pieces: rounds(5, 'test/peers/pull-backups.test.ts', 'PULL_SEED', { PULL_ROUNDS: '20' }),
    count: /(\d+) pulled backups$/m,
    amount: ([backups]) => `${backups} backups`,
  },
  takeover: {
    what: 'updates of a daemon under a guest that writes, and updates of which one side is killed',
    pieces: () =>
      Array.from({ length: 10 }, (_, i) => ({
        name: `round ${i}`,
        args: ['--import', 'tsx', '--test', 'test/peers/takeover.test.ts'],
        env: { UPDATES: '100', TAKEOVER_KILLS: '20' },
      })),
    count: /(\d+) updates, (\d+) writes/m,
    amount: ([updates, writes]) => `${updates} updates, ${writes} writes`,
  },
  'vhost-chaos': {
    what: 'a real machine on disks over vhost-user, whose server is killed, updated, stopped and told to do jobs',
    pieces: rounds(10, 'test/peers/vhost-chaos.test.ts', 'CHAOS_SEED', { CHAOS_STEPS: '60' }),
    count: /(\d+) steps of chaos/m,
    amount: ([steps]) => `${steps} steps`,
  },
  'machine-chaos': {
    what: 'livedisk machine is reset, switched off, updated, killed, told to do jobs, and moved over links that break',
    pieces: rounds(10, 'test/peers/machine-chaos.test.ts', 'CHAOS_SEED', { CHAOS_STEPS: '40' }),
    count: /(\d+) steps of machine chaos/m,
    amount: ([steps]) => `${steps} steps`,
  },
  fuzz: {
    what: 'damaged qcow2 images, opened, checked, read and written',
    pieces: (seed) =>
      Array.from({ length: 20 }, (_, i) => ({
        name: `runs from ${seed + i * FUZZ_RUNS_A_PIECE}`,
        args: ['--import', 'tsx', '--test', 'src/drivers/qcow2/fuzz.test.ts'],
        env: { FUZZ_SEED: String(seed + i * FUZZ_RUNS_A_PIECE), FUZZ_RUNS: String(FUZZ_RUNS_A_PIECE) },
      })),
    amount: (_, pieces) => `${pieces * FUZZ_RUNS_A_PIECE} images`,
  },
  moves: {
    what: 'moves of a machine between two processes that are killed, cut off and asked by hand, in the simulated machine',
    pieces: (seed) =>
      Array.from({ length: 10_000 / MOVES_A_PIECE }, (_, i) => ({
        name: `moves from ${seed + i * MOVES_A_PIECE}`,
        args: [
          ...['--import', 'tsx', 'test/sim/moves-main.ts', '--seed', String(seed + i * MOVES_A_PIECE)],
          ...['--seeds', String(MOVES_A_PIECE)],
        ],
      })),
    count: /^(\d+) moves from \d+ passed$/m,
    amount: ([moves]) => `${moves} moves`,
  },
  plans: {
    what: 'random chains and actions on them: what then happens is what the plan said',
    pieces: (seed) =>
      Array.from({ length: 1000 / PLANS_A_PIECE }, (_, i) => ({
        name: `plans from ${seed + i * PLANS_A_PIECE}`,
        args: ['--import', 'tsx', '--test', 'test/view/random-plans.test.ts'],
        env: { PLAN_SEED: String(seed + i * PLANS_A_PIECE), PLAN_SEEDS: String(PLANS_A_PIECE) },
      })),
    count: /(\d+) plans carried out, (\d+) refused/m,
    amount: ([done, refused]) => `${done} plans carried out, ${refused} refused`,
  },
  resent: {
    what: 'mirrors, backups, commits and streams of 4 GiB with a journal, each cut off 100 times: little is sent again',
    pieces: (seed) =>
      Array.from({ length: 4 }, (_, i) => ({
        name: `seed ${seed + i}`,
        args: ['--import', 'tsx', 'test/sim/resent-main.ts', '--seed', String(seed + i)],
      })),
    count: /^(\d+) cuts from seed \d+ passed, (\d+) of (\d+) bytes sent again$/m,
    amount: ([cuts, again, all]) =>
      `${cuts} cuts, ${((100 * again) / all).toFixed(1)}% sent again in 100 of them`,
  },
  load: {
    what: 'snapshots of two disks, reopens and transactions of bitmaps in a row, under 32 writers, with commits',
    pieces: (seed) => [
      {
        name: 'all rounds',
        args: ['--import', 'tsx', 'test/load/main.ts', '--rounds', '1000', '--seed', String(seed)],
      },
    ],
    count:
      /^(\d+) rounds passed, (\d+) writes, longest write of 99 % of snapshots (\d+) ms, without (\d+) ms$/m,
    amount: ([rounds, writes, p99, without]) =>
      `${rounds} rounds, ${writes} writes; the longest write of 99 % of snapshots took ${p99} ms, without any ${without} ms`,
  },
  'nbd-server': conversations(
    'nbd-server',
    'conversations of the NBD server with clients that say anything, over sockets of the machine',
  ),
  'nbd-client': conversations(
    'nbd-client',
    'conversations of the NBD client with servers that say anything, over sockets of the machine',
  ),
  'vhost-user': conversations(
    'vhost-user',
    'front-ends that say anything, in messages and in the memory of their guest, to the server of vhost-user',
  ),
  parsers: conversations(
    'parsers',
    'option strings, command lines, json: names, JSON and arguments of commands with anything in them',
    'times 40 texts',
  ),
  flushes: {
    what: 'flushes deleted one by one from a copy of the code: some test fails without each',
    pieces: () =>
      listOf(['--import', 'tsx', 'test/sim/flushes.ts', '--list']).map((site) => ({
        name: site,
        args: ['--import', 'tsx', 'test/sim/flushes.ts', site],
      })),
    amount: (_, pieces) => `${pieces} flushes`,
  },
};

function listOf(args) {
  const done = spawnSync(process.execPath, args, { encoding: 'utf8' });
  if (done.status !== 0) throw new Error(done.stderr);
  return done.stdout.trim().split('\n');
}

function git(...args) {
  return spawnSync('git', args, { encoding: 'utf8' }).stdout.trim();
}

/** The commit, and whether files differ from it. */
function treeName() {
  const changed = git('status', '--porcelain', '--', 'src', 'test', 'scripts') !== '';
  return `${git('rev-parse', '--short', 'HEAD')}${changed ? ' and changes' : ''}`;
}

function load(name, path) {
  const tree = treeName();
  try {
    const state = JSON.parse(readFileSync(path, 'utf8'));
    if (state.tree === tree && !state.ended) return state;
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
  return { tree, seed: randomInt(1, 2 ** 31), done: {} };
}

/** Whole, whenever this is stopped. */
function keep(path, state) {
  writeFileSync(`${path}.new`, JSON.stringify(state));
  renameSync(`${path}.new`, path);
}

function runPiece({ args, env }) {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, args, { env: { ...process.env, ...env } });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes) => (output += bytes));
    child.on('exit', (code) => resolve({ passed: code === 0, output }));
  });
}

async function prove(name, processes) {
  const proof = PROOFS[name];
  mkdirSync('.proof', { recursive: true });
  const path = `.proof/${name}.json`;
  const state = load(name, path);
  const pieces = proof.pieces(state.seed);
  const left = pieces.filter((piece) => !(piece.name in state.done));
  console.log(
    `${name}: ${pieces.length - left.length} of ${pieces.length} pieces are done, seed ${state.seed}, ${state.tree}`,
  );
  let failure;
  const worker = async () => {
    for (let piece = left.shift(); piece && !failure; piece = left.shift()) {
      const { passed, output } = await runPiece(piece);
      if (!passed) failure ??= { piece, output };
      else {
        state.done[piece.name] = proof.count?.exec(output)?.slice(1).map(Number) ?? [];
        keep(path, state);
      }
    }
  };
  await Promise.all(Array.from({ length: processes }, worker));
  if (failure) {
    console.error(failure.output.split('\n').slice(-150).join('\n'));
    console.error(`${name} failed: ${failure.piece.name}`);
    return 1;
  }
  const counts = Object.values(state.done);
  const sums = (counts[0] ?? []).map((_, i) => counts.reduce((sum, count) => sum + count[i], 0));
  keep(path, { ...state, ended: true });
  record(
    name,
    `| ${name} | ${new Date().toISOString().slice(0, 10)} | ${state.tree} | ${proof.amount(sums, pieces.length)} | ${state.seed} |`,
  );
  return 0;
}

/** Puts the line of a proof in the place of its last one. */
function record(name, line) {
  const path = 'docs/PROOFS.md';
  const lines = readFileSync(path, 'utf8').split('\n');
  const at = lines.findIndex((old) => old.startsWith(`| ${name} |`));
  if (at >= 0) lines[at] = line;
  else lines.splice(lines.findIndex((old) => old.startsWith('| --- |')) + 1, 0, line);
  writeFileSync(path, lines.join('\n'));
  console.log(line);
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { processes: { type: 'string' } },
});
const [name] = positionals;
if (!Object.hasOwn(PROOFS, name ?? '')) {
  for (const [known, { what }] of Object.entries(PROOFS)) console.error(`npm run proof ${known}: ${what}`);
  process.exitCode = 1;
} else process.exitCode = await prove(name, Number(values.processes ?? availableParallelism()));
