"""Write reports of ablations: tables, figures for papers, and one page that needs no network."""
