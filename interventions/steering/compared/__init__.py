"""Methods and gates compared at equal harm, and the setting that keeps what is promised. Imports steering and below."""
