import { SocketAddress } from './socket-address.js';
import { arrayOf, bool, enumOf, type Infer, int, optional, required, str, struct, uint32 } from './types.js';

/** `x-move`: a machine and its disks go to another host, as one thing to ask for. */

const MoveDisk = struct('XMoveDisk', { device: required(str), export: optional(str) });

const MoveStorage = struct('XMoveStorage', {
  server: required(SocketAddress),
  disks: optional(arrayOf(MoveDisk)),
  'tls-creds': optional(str),
  'tls-hostname': optional(str),
  'reconnect-delay': optional(uint32),
  speed: optional(int),
});

export const XMove = struct('x-move-arg', {
  uri: required(str),
  storage: optional(MoveStorage),
  bitmaps: optional(bool),
  'max-stop': optional(uint32),
  'dry-run': optional(bool),
});
export type XMove = Infer<typeof XMove>;

export const MOVE_COMMANDS = { 'x-move': XMove, 'x-move-cancel': struct('q_empty', {}) } as const;

const STAGE = enumOf('XMoveStage', [
  ...(['preparing', 'copying', 'switching', 'completed', 'failed', 'cancelled'] as const),
]);
export type MoveStage = Infer<typeof STAGE>;

const DISK = { device: required(str), node: required(str), export: required(str) } as const;

/** What a move will do. */
export const MovePlan = struct('XMovePlan', {
  disks: required(arrayOf(struct('XMovePlanDisk', { ...DISK, length: required(int), data: required(int) }))),
  bitmaps: required(arrayOf(struct('XMoveBitmap', { node: required(str), name: required(str) }))),
  'round-trip-us': required(int),
  'forecast-stop-ms': required(int),
});
export type MovePlan = Infer<typeof MovePlan>;

/** How far a move is. */
export const WholeMoveInfo = struct('XMoveProgress', {
  stage: required(STAGE),
  disks: required(
    arrayOf(
      struct('XMoveProgressDisk', {
        ...DISK,
        done: required(int),
        left: required(int),
        rate: required(int),
      }),
    ),
  ),
  'forecast-stop-ms': optional(int),
  'stop-ms': optional(int),
  error: optional(str),
});
export type WholeMoveInfo = Infer<typeof WholeMoveInfo>;

export const MOVE_RETURNS = { 'x-move': MovePlan } as const;

export const MOVE_EVENTS = {
  X_MOVE_STAGE: struct('X_MOVE_STAGE-arg', { stage: required(STAGE), error: optional(str) }),
} as const;
