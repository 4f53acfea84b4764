"""Reports of ablations: tables to read and to print, and one page with plots and pictures that needs no network."""
