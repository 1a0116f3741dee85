import { jobFilter } from '../pass-through/job-filter.js';

/** The filter of a backup: before the guest overwrites something, its old content goes to the target. */
export const COPY_BEFORE_WRITE = jobFilter('copy-before-write');
