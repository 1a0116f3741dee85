import type { JsonObject } from '../../schema/types.js';
import type { View } from '../model.js';

/** What somebody wants done. Images are named by their ids, files as the server's machine names them. */
export type Action =
  | { readonly kind: 'snapshot'; readonly image: string; readonly file: string; readonly node: string }
  /** Data of the layers below, down to `base` (which stays), flow into the image. */
  | { readonly kind: 'stream'; readonly image: string; readonly base?: string }
  /** The image and the layers below it flow into `base`. */
  | { readonly kind: 'commit'; readonly image: string; readonly base: string }
  | { readonly kind: 'mirror'; readonly image: string; readonly file: string; readonly node: string }
  | { readonly kind: 'backup'; readonly image: string; readonly file: string }
  /** The moment that an image which is not written any more holds cannot be gone back to afterwards. */
  | { readonly kind: 'delete'; readonly image: string }
  | { readonly kind: 'resize'; readonly image: string; readonly bytes: number }
  /** `file` is a unix socket at which an NBD server is started for it. */
  | {
      readonly kind: 'export';
      readonly image: string;
      readonly name: string;
      readonly isWritable: boolean;
      readonly file?: string;
    }
  /** `isServerEnded` where the NBD server was started for it. */
  | { readonly kind: 'unexport'; readonly name: string; readonly isServerEnded?: boolean }
  /** Whether servers count how long requests of guests' devices take. */
  | { readonly kind: 'percentiles'; readonly isOn: boolean }
  | { readonly kind: 'job'; readonly job: string; readonly verb: string; readonly speed?: number };

/** A command of QMP as it is sent. */
export interface PlannedCommand {
  readonly execute: string;
  readonly arguments: JsonObject;
  /** It waits for the job to be READY. */
  readonly afterReady?: boolean;
  /** It is refused where a command before it has done its work, too: no query tells. */
  readonly mayBeGone?: boolean;
  /** The command that takes it back where a later one of its plan is refused. */
  readonly takenBackBy?: string;
}

export interface Plan {
  readonly action: Action;
  /** What happens, a sentence each. */
  readonly words: readonly string[];
  readonly commands: readonly PlannedCommand[];
  /** What is copied at most: what the images that flow occupy. Some of it may be hidden by other layers. */
  readonly bytesAtMost: number;
  /** What is copied, where a map of the disk tells (expected.ts), but for what guests write meanwhile. */
  readonly bytes?: number;
  /** Layers that are copied from: of the image's own chain, the image being 0, filters left out. */
  readonly copies?: { readonly image: string; readonly first: number; readonly end: number };
  /** Images whose content is wrong afterwards, and why. */
  readonly invalid: readonly InvalidImage[];
  readonly after: View;
  /** How to get back, in words. */
  readonly undo?: string;
  /** What takes it back while that is possible, to be planned of the view as it is then. */
  readonly takenBackBy?: Action;
  /** What the server itself says of the first command, where it is a livedisk: counted, not guessed. */
  readonly dryRun?: {
    readonly refused: readonly string[];
    /** Files that nobody has open here and that are wrong afterwards, with why: past those of `invalid`. */
    readonly spoilt: readonly string[];
    readonly room?: Room;
  };
  /** The job that is started. */
  readonly jobId?: string;
}

/** What a copy takes of a file system that its image does not have yet, and what is free there. */
export interface Room {
  readonly path: string;
  readonly neededBytes: number;
  readonly freeBytes: number;
}

export interface InvalidImage {
  readonly id: string;
  readonly why: string;
}
