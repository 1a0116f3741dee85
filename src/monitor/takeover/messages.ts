import type { DiscardCounts } from '../../block/driver.js';
import type { PassedInterval } from '../../block/interval-statistics.js';
import type { Operation, OperationStatistics } from '../../block/operation-statistics.js';
import type { ThrottleLevels } from '../../block/objects/throttling.js';
import type { PassedFile } from '../../host/passing.js';
import type { JobEnd } from '../../jobs/manager.js';
import type { EndedJob, PassedJob } from '../../jobs/passed/passed-job.js';
import type { PassedMoves } from '../../attach/migration/moves.js';
import type { WholeMoveInfo } from '../../schema/move.js';
import type { EngineState } from '../../schema/state.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import type { PassedAgreement } from '../../wire/nbd/server-connection.js';
import type { PassedMadeSession } from '../sessions/session.js';
import type { PassedSession } from '../../wire/qmp/session.js';

/** A change of what is said here is a new version. */
export const TAKEOVER_PROTOCOL = 6;

/** The place of a descriptor among those of its message. */
export type Place = number;

/** An open image of a node. */
export type FileState = Omit<PassedFile, 'fd'> & { node: string; fd: Place };

/** Bytes in a file in memory. */
export interface BytesState {
  fd: Place;
  lengthBytes: number;
}

/** What a driver has of a node in memory. */
export interface MemoryState {
  node: string;
  data: object;
  parts: BytesState[];
}

/** Bits of a bitmap that goes with the process, one a granule, in a file in memory. */
export interface BitmapState extends BytesState {
  node: string;
  name: string;
  granularityBytes: number;
  enabled: boolean;
  /** Its image is to keep it once that is ours. */
  persistent: boolean;
}

/** One that is kept in a file beside the image, and is known better than that says. */
export interface SideBitmapState extends BytesState {
  node: string;
  name: string;
  path: string;
  enabled: boolean;
  file: Place;
}

/** A job without a journal. */
export type PassedJobState = Omit<PassedJob, 'plan' | 'speed' | 'work' | 'isPast'> & {
  /** See planText(). */
  plan: string;
  speed: string;
  work: { data: JsonObject; parts: { [what: string]: BytesState[] }; files: Place[] };
  /** Who is at its source past its filter. */
  past: { nodes: string[]; backends: Array<{ kind: string; name: string }> };
};

export type StatisticsState = Record<Operation, OperationStatistics>;

/** Where a disk was written to: numbers of regions (Float64Array), bytes a second. */
export interface HeatState extends BytesState {
  node: string;
  askedRegionBytes: number;
  halfLifeMs: number;
  regionBytes: number;
  countedMs: number;
}

/** A client of an NBD server; `client` is missing of one that waits for a place. */
export interface NbdClientState {
  /** The path of a device, or '' for the NBD server. */
  server: string;
  fd: Place;
  client?: { agreement?: PassedAgreement; said: string; received: string };
}

/** A front-end of vhost-user; what it said is missing of one that waits for its turn. */
export interface FrontEndState {
  kind: 'export' | 'device';
  /** The id of an export, or the path of a device. */
  name: string;
  fd: Place;
  frontEnd?: { messages: string; answered: number; fds: Place[] };
}

export interface SessionState {
  chardev: string;
  fd: Place;
  /** What it makes is part of that session (x-session-enter), which may end with it. */
  entered?: string;
  owned?: string[];
  session?: Omit<PassedSession, 'unseen' | 'asked'> & { unseen: string; asked?: { id?: JsonValue } };
}

/** What a daemon has besides what its state says; bytes are in base64. */
export interface LiveState {
  secrets: Array<{ id: string; options: JsonObject }>;
  listeners: Array<{ names: string[]; fd: Place }>;
  bitmaps: BitmapState[];
  sideBitmaps: SideBitmapState[];
  /** The order of all bitmaps of a node. */
  bitmapOrder: Array<{ node: string; names: string[] }>;
  highestWritten: Array<{ node: string; offset: number }>;
  /** By what they are the backends of: a drive's id, a device's path, an export's id. */
  statistics: Array<{
    kind: 'drive' | 'device' | 'export';
    name: string;
    counters: StatisticsState;
    intervals: PassedInterval[];
    idleMs?: number;
  }>;
  discards: Array<{ node: string; counts: DiscardCounts }>;
  heats: HeatState[];
  throttling: Array<{ group: string; levels: ThrottleLevels }>;
  descriptorSets: Array<{ setId: number; members: Array<{ fd: number; place: Place; opaque?: string }> }>;
  namedDescriptors: Array<{ name: string; fd: Place }>;
  ringBuffers: Array<{ id: string; content: string }>;
  clients: NbdClientState[];
  frontEnds: FrontEndState[];
  sessions: SessionState[];
  /** Of x-session-open. */
  madeSessions: PassedMadeSession[];
  history: JobEnd[];
  /** With journals: what of them has changed since they began. */
  jobs: Array<{ id: string; speed: number; isPaused: boolean }>;
  /** Without journals, the oldest first; and those that wait to be dismissed. */
  passedJobs: Array<PassedJobState | EndedJob>;
  /** Writable as long as a job needs that. */
  lentNodes: string[];
  /** All of the graph. */
  nodeOrder: string[];
  /** The program in which the guest runs, where livedisk has started one. */
  guest?: { data: JsonObject; fds: Place[] };
  /** Of a machine: the moves to here and from here, which have ended. */
  moves?: { machine: PassedMoves; whole?: WholeMoveInfo };
  /** Of the folder of the state. */
  lock?: Place;
}

export interface Prepared {
  state: EngineState;
  files: FileState[];
  memories: MemoryState[];
  live: LiveState;
}
